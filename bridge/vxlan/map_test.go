package vxlan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseMap(t *testing.T) {
	for list, want := range map[string]string{
		"10:10010":                          "10:10010",
		"20:10020,10:10010":                 "10:10010,20:10020",
		"100-110:20100-20110":               "100-110:20100-20110",
		"11:111,10:110,12-13:112-113":       "10-13:110-113",
		"10:110,11:112":                     "10:110,11:112",
		"1-4094:16773122-16777215":          "1-4094:16773122-16777215",
		"4094:1,1:4094":                     "1:4094,4094:1",
		"5-5:7-7":                           "5:7",
		"10-12:110-112,13:200,14-15:91-92":  "10-12:110-112,13:200,14-15:91-92",
		"30:3,20-21:5-6,22:7,29:2,28-28:1":  "20-22:5-7,28-30:1-3",
		"1:16777215,2-3:1-2,4:16777214":     "1:16777215,2-3:1-2,4:16777214",
		"100-200:100-200,300-400:1000-1100": "100-200:100-200,300-400:1000-1100",
	} {
		m, err := ParseMap(list)
		if err != nil || m.String() != want {
			t.Errorf("%s: %q, %v, want %q", list, m, err, want)
		}
	}
}

func TestParseMapRefuses(t *testing.T) {
	for list, want := range map[string]string{
		"":                            "want VLAN:VNI",
		"10":                          "want VLAN:VNI",
		"10:":                         "want VLAN:VNI",
		":10":                         "want VLAN:VNI",
		"10:10010,":                   "want VLAN:VNI",
		"10 :10010":                   "want VLAN:VNI",
		"+10:10010":                   "want VLAN:VNI",
		"-10:10010":                   "want VLAN:VNI",
		"10:10010:5":                  "want VLAN:VNI",
		"10-:1-2":                     "want VLAN:VNI",
		"0x10:5":                      "want VLAN:VNI",
		"10:99999999999":              "want VLAN:VNI",
		"all:1-4094":                  "want VLAN:VNI",
		"0:10010":                     "want VLANs of 1 to 4094",
		"4095:10010":                  "want VLANs of 1 to 4094",
		"4090-4095:1-6":               "want VLANs of 1 to 4094",
		"10:0":                        "want VNIs of 1 to 16777215",
		"10:16777216":                 "want VNIs of 1 to 16777215",
		"10-11:16777215-16777216":     "want VNIs of 1 to 16777215",
		"20-10:1-11":                  "lower number first",
		"10-20:11-1":                  "lower number first",
		"10-20:1-10":                  "11 VLANs and 10 VNIs",
		"10-20:5":                     "11 VLANs and 1 VNIs",
		"10:5-6":                      "1 VLANs and 2 VNIs",
		"10:1,10:2":                   "VLAN 10 is there twice",
		"10:1,11:1":                   "VNI 1 is there twice",
		"10-20:110-120,15:9":          "VLAN 15 is there twice",
		"10-20:110-120,30-40:120-130": "VNI 120 is there twice",
		"10-20:110-120,10-20:110-120": "VLAN 10 is there twice",
	} {
		if m, err := ParseMap(list); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 150 {
			t.Errorf("%q: %q, %v, want %q", list, m, err, want)
		}
	}
}

// FuzzMap: what is read is written, and read again as the same; no VLAN and no VNI is there twice.
func FuzzMap(f *testing.F) {
	f.Add("10:10010,20-29:20020-20029")
	f.Add("1-4094:1-4094")
	f.Fuzz(func(t *testing.T, list string) {
		m, err := ParseMap(list)
		if err != nil {
			return
		}
		again, err := ParseMap(m.String())
		if err != nil || !slices.Equal(m, again) {
			t.Errorf("%q: %q, then %q, %v", list, m, again, err)
		}
		if n := len(m.ByVLAN()); n != len(m.VNIs()) || len(slices.Compact(m.VNIs())) != n {
			t.Errorf("%q: %d VLANs, %v", list, n, m.VNIs())
		}
	})
}

func TestMapAsConfig(t *testing.T) {
	m, err := ParseMap("20:10020,10:10010")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Map: m, Local: netip.MustParseAddr("192.0.2.1")}
	if err := c.Validate(); err != nil || c.Interface("br0") != "vx-br0" || c.String() != "map 10:10010,20:10020" ||
		!slices.Equal(c.Segments(), []int{10010, 10020}) {
		t.Errorf("%v, %s, %s, %v", err, c.Interface("br0"), c, c.Segments())
	}
	if name := c.Interface("123456789012345"); name != "vx-123456789012" {
		t.Errorf("the device of a bridge with a long name: %q", name)
	}
	refused := func(want string, c Config) {
		t.Helper()
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	refused("VNI 5 and a map of VLANs", Config{VNI: 5, Map: m, Local: c.Local})
	refused("want at least one", Config{Map: Map{}, Local: c.Local})
	refused("VNI 7 is there twice", Config{Map: Map{{1, 1, 7}, {2, 2, 7}}, Local: c.Local})
	refused("map 10:10010,20:10020: it needs an address of this host", Config{Map: m})
	c.Map = Map{{1, maxVLAN, 1}}
	for i := range 9 {
		c.Remotes = append(c.Remotes, netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+2)))
	}
	refused("4094 VNIs for 9 remote hosts", c)
	c.Remotes = c.Remotes[:8]
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if text := (Config{Map: Map{{1, 1000, 100000}, {2000, 3000, 200000}, {4000, 4001, 5}}}).String(); len(text) > 50 {
		t.Errorf("%q", text)
	}
}
