package bridge_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge"
)

// vlans is ParseVLANs for tables.
func vlans(list string) []bridge.VLANRange {
	ranges, err := bridge.ParseVLANs(list)
	if err != nil {
		panic(err)
	}
	return ranges
}

func TestPortConfigValidate(t *testing.T) {
	for _, tc := range []struct {
		cfg  bridge.PortConfig
		want string // part of the error; empty for none
	}{
		{bridge.PortConfig{}, ""},
		{bridge.PortConfig{VLAN: 1}, ""},
		{bridge.PortConfig{VLAN: 4094, Isolated: true, Hairpin: true, NoLearning: true, NoFlood: true}, ""},
		{bridge.PortConfig{Trunk: vlans("1-4094"), Native: 4094}, ""},
		{bridge.PortConfig{Trunk: []bridge.VLANRange{{7, 7}, {2, 8}}}, ""}, // merged, not refused
		{bridge.PortConfig{VLAN: 4095}, "VLAN 4095: want 1 to 4094"},
		{bridge.PortConfig{VLAN: -1}, "VLAN -1: want 1 to 4094"},
		{bridge.PortConfig{Trunk: vlans("2"), Native: 4095}, "VLAN 4095: want 1 to 4094"},
		{bridge.PortConfig{Trunk: []bridge.VLANRange{{0, 5}}}, "VLAN 0: want"},
		{bridge.PortConfig{Trunk: []bridge.VLANRange{{5, 5000}}}, "VLAN 5000: want"},
		{bridge.PortConfig{Trunk: []bridge.VLANRange{{5, 4}}}, "VLANs 5-4: want the lower number first"},
		{bridge.PortConfig{VLAN: 10, Trunk: vlans("2")}, "both VLAN and trunk"},
		{bridge.PortConfig{Native: 2}, "native VLAN without trunk"},
		{bridge.PortConfig{VLAN: 10, Native: 2}, "native VLAN without trunk"},
		{bridge.PortConfig{Other: "untagged:20"}, `"untagged:20" cannot be requested`},
	} {
		err := tc.cfg.Validate()
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%+v: %v", tc.cfg, err)
		case tc.want != "" && (!errors.Is(err, bridge.ErrInvalid) || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%+v: got %v, want ErrInvalid with %q", tc.cfg, err, tc.want)
		}
	}
}

func TestPortConfigText(t *testing.T) {
	for want, cfg := range map[string]bridge.PortConfig{
		"":                         {},
		"vlan:10":                  {VLAN: 10},
		"trunk:2-5,7;native:1":     {Trunk: []bridge.VLANRange{{7, 7}, {3, 5}, {2, 4}}, Native: 1},
		"trunk:2,4-5;native:3":     {Trunk: vlans("2-5"), Native: 3}, // the native VLAN need not be told twice
		"vlan:3":                   {Trunk: vlans("3"), Native: 3},   // is the same to the kernel
		"trunk:1-4094":             {Trunk: vlans("1-2000,2001-4094")},
		"isolated":                 {Isolated: true},
		"vlan:4094;hairpin":        {VLAN: 4094, Hairpin: true},
		"isolated;nolearn":         {Isolated: true, NoLearning: true},
		"trunk:9;noflood":          {Trunk: vlans("9"), NoFlood: true},
		"vlan:1;forward:lacp,lldp": {VLAN: 1, Forward: 1<<2 | 1<<14},
		"vlan:1;hairpin;nolearn":   {VLAN: 1, Hairpin: true, NoLearning: true},
		"trunk:2-5,7;native:1;isolated;hairpin;nolearn;noflood": {
			Trunk: vlans("7,2-5"), Native: 1, Isolated: true, Hairpin: true, NoLearning: true, NoFlood: true,
		},
	} {
		if got := cfg.String(); got != want {
			t.Errorf("%+v: got %q, want %q", cfg, got, want)
		}
		back, err := bridge.ParsePortConfig(want)
		if err != nil || !back.Equal(cfg) {
			t.Errorf("parse %q: got %+v, %v, want %+v", want, back, err, cfg)
		}
		if back.IsZero() != (want == "") {
			t.Errorf("%q: IsZero is %v", want, back.IsZero())
		}
	}
}

func TestPortConfigsDiffer(t *testing.T) {
	texts := []string{
		"", "vlan:1", "vlan:10", "trunk:10", "trunk:10-11", "trunk:10;native:1", "trunk:10;native:2",
		"isolated", "hairpin", "nolearn", "noflood", "vlan:10;noflood",
	}
	for _, a := range texts {
		for _, b := range texts {
			x, errX := bridge.ParsePortConfig(a)
			y, errY := bridge.ParsePortConfig(b)
			if errX != nil || errY != nil {
				t.Fatal(errX, errY)
			}
			if x.Equal(y) != (a == b) {
				t.Errorf("%q Equal %q: %v", a, b, x.Equal(y))
			}
		}
	}
	if (bridge.PortConfig{VLAN: 1, Other: "untagged:2"}).Equal(bridge.PortConfig{VLAN: 1}) {
		t.Error("Other is not compared")
	}
}

func TestParsePortConfigRefuses(t *testing.T) {
	for _, text := range []string{
		";", "vlan", "vlan:", "vlan:0", "vlan:+1", "vlan:10;vlan:11", "vlan:10;", "vlan: 10", "isolated:1", "isolated;isolated",
		"trunk:", "trunk:1-", "trunk:-1", "trunk:1-2-3", "trunk:5-2", "trunk:1,,2", "native:1", "vlan:1;trunk:2", "untagged:20", "Hairpin",
	} {
		if cfg, err := bridge.ParsePortConfig(text); !errors.Is(err, bridge.ErrInvalid) {
			t.Errorf("%q: got %+v, %v, want ErrInvalid", text, cfg, err)
		}
	}
}

func TestParseVLANs(t *testing.T) {
	got, err := bridge.ParseVLANs("7,2-3,4,3-5,4094")
	if diff := cmp.Diff([]bridge.VLANRange{{2, 5}, {7, 7}, {4094, 4094}}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, list := range []string{"", " ", "0", "4095", "1-4095", "99999", "1;2", "a", "2-1"} {
		if got, err := bridge.ParseVLANs(list); !errors.Is(err, bridge.ErrInvalid) {
			t.Errorf("%q: got %v, %v, want ErrInvalid", list, got, err)
		}
	}
}

func TestPortConfigJSON(t *testing.T) {
	cfg := bridge.PortConfig{Trunk: vlans("2-5"), Native: 1, NoFlood: true}
	text, err := json.Marshal(cfg)
	if want := `{"trunk":[{"first":2,"last":5}],"native":1,"no_flood":true}`; err != nil || string(text) != want {
		t.Errorf("got %s, %v, want %s", text, err, want)
	}
	var back bridge.PortConfig
	if err := json.Unmarshal(text, &back); err != nil || !back.Equal(cfg) {
		t.Errorf("got %+v, %v", back, err)
	}
}

// FuzzPortConfig: what is taken is valid, says the same when it is written and
// read again, and has one way to be written.
func FuzzPortConfig(f *testing.F) {
	for _, text := range []string{"", "vlan:10", "trunk:2-5,7;native:1;isolated;hairpin;nolearn;noflood", "trunk:3,1-2;native:3", "trunk:4094-4094", "forward:lldp,lacp"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := bridge.ParsePortConfig(text)
		if err != nil {
			if !errors.Is(err, bridge.ErrInvalid) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		written := cfg.String()
		again, err := bridge.ParsePortConfig(written)
		if err != nil || !again.Equal(cfg) || again.String() != written || cfg.Validate() != nil {
			t.Fatalf("%q: %+v is written %q and read %+v, %v", text, cfg, written, again, err)
		}
		if strings.ContainsAny(written, " \t\n") {
			t.Fatalf("%q is written with blanks: %q", text, written)
		}
	})
}

func TestProtocols(t *testing.T) {
	for list, want := range map[string]string{
		"lldp": "lldp", "ptp": "lldp", "0e": "lldp", "lacp,lldp": "lacp,lldp", "lldp,lacp,eapol": "lacp,eapol,lldp",
		"0d,stp,elmi": "stp,elmi,0d", "all": "all", "all,lldp": "all", "00": "stp",
	} {
		p, err := bridge.ParseProtocols(list)
		if err != nil || p.String() != want {
			t.Errorf("%s: %q, %v, want %q", list, p, err, want)
		}
		if again, err := bridge.ParseProtocols(p.String()); err != nil || again != p {
			t.Errorf("%s: read again %v, %v", list, again, err)
		}
	}
	for list, want := range map[string]string{
		"": "want stp, lacp", "LLDP": "want stp", "lldp,": "want stp", "e": "want stp", "10": "00 to 0f", "1e": "00 to 0f", "-1": "00 to 0f", "+1": "00 to 0f",
		"pause": "no bridge forwards pause frames", "01": "ethtool -A", "lldp,pause": "ethtool -A",
	} {
		if p, err := bridge.ParseProtocols(list); !errors.Is(err, bridge.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", list, p, err, want)
		}
	}
	if err := (bridge.PortConfig{Forward: 2}).Validate(); !errors.Is(err, bridge.ErrInvalid) {
		t.Errorf("pause: %v", err)
	}
	cfg := bridge.PortConfig{Forward: bridge.AllProtocols &^ 1}
	text, err := json.Marshal(cfg)
	var back bridge.PortConfig
	if want := `{"forward":"lacp,eapol,04,05,06,elmi,08,09,0a,0b,0c,0d,lldp,0f"}`; err != nil || string(text) != want || json.Unmarshal(text, &back) != nil || !back.Equal(cfg) {
		t.Errorf("%s, %v", text, err)
	}
	if back, err := bridge.ParsePortConfig(cfg.String()); err != nil || !back.Equal(cfg) || back.Equal(bridge.PortConfig{}) {
		t.Errorf("%q: %+v, %v", cfg, back, err)
	}
	if all, err := bridge.ParseVLANs("all"); err != nil || bridge.FormatVLANs(all) != "1-4094" {
		t.Errorf("all VLANs: %v, %v", all, err)
	}
}
