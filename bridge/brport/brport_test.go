package brport_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge/brport"
)

// vlans is ParseVLANs without an error, for tables.
func vlans(list string) []brport.VLANRange {
	ranges, err := brport.ParseVLANs(list)
	if err != nil {
		panic(err)
	}
	return ranges
}

func TestSettingsValidate(t *testing.T) {
	for _, tc := range []struct {
		cfg  brport.Settings
		want string // part of the error; empty for none
	}{
		{brport.Settings{}, ""},
		{brport.Settings{VLAN: 1}, ""},
		{brport.Settings{VLAN: 4094, Isolated: true, Hairpin: true, NoLearning: true, NoFlood: true}, ""},
		{brport.Settings{Trunk: vlans("1-4094"), Native: 4094}, ""},
		{brport.Settings{Trunk: []brport.VLANRange{{7, 7}, {2, 8}}}, ""}, // merged, not refused
		{brport.Settings{VLAN: 4095}, "VLAN 4095: want 1 to 4094"},
		{brport.Settings{VLAN: -1}, "VLAN -1: want 1 to 4094"},
		{brport.Settings{Trunk: vlans("2"), Native: 4095}, "VLAN 4095: want 1 to 4094"},
		{brport.Settings{Trunk: []brport.VLANRange{{0, 5}}}, "VLAN 0: want"},
		{brport.Settings{Trunk: []brport.VLANRange{{5, 5000}}}, "VLAN 5000: want"},
		{brport.Settings{Trunk: []brport.VLANRange{{5, 4}}}, "VLANs 5-4: want the lower number first"},
		{brport.Settings{VLAN: 10, Trunk: vlans("2")}, "both VLAN and trunk"},
		{brport.Settings{Native: 2}, "native VLAN without trunk"},
		{brport.Settings{VLAN: 10, Native: 2}, "native VLAN without trunk"},
		{brport.Settings{Other: "untagged:20"}, `"untagged:20" cannot be requested`},
	} {
		err := tc.cfg.Validate()
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%+v: %v", tc.cfg, err)
		case tc.want != "" && (!errors.Is(err, brport.ErrInvalid) || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%+v: got %v, want ErrInvalid with %q", tc.cfg, err, tc.want)
		}
	}
}

func TestSettingsText(t *testing.T) {
	for want, cfg := range map[string]brport.Settings{
		"":                         {},
		"vlan:10":                  {VLAN: 10},
		"trunk:2-5,7;native:1":     {Trunk: []brport.VLANRange{{7, 7}, {3, 5}, {2, 4}}, Native: 1},
		"trunk:2,4-5;native:3":     {Trunk: vlans("2-5"), Native: 3}, // the native VLAN need not be in the trunk
		"vlan:3":                   {Trunk: vlans("3"), Native: 3},   // the same to the kernel
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
		back, err := brport.Parse(want)
		if err != nil || !back.Equal(cfg) {
			t.Errorf("parse %q: got %+v, %v, want %+v", want, back, err, cfg)
		}
		if back.IsZero() != (want == "") {
			t.Errorf("%q: IsZero is %v", want, back.IsZero())
		}
	}
}

func TestSettingsDiffer(t *testing.T) {
	texts := []string{
		"", "vlan:1", "vlan:10", "trunk:10", "trunk:10-11", "trunk:10;native:1", "trunk:10;native:2",
		"isolated", "hairpin", "nolearn", "noflood", "vlan:10;noflood",
	}
	for _, a := range texts {
		for _, b := range texts {
			x, errX := brport.Parse(a)
			y, errY := brport.Parse(b)
			if errX != nil || errY != nil {
				t.Fatal(errX, errY)
			}
			if x.Equal(y) != (a == b) {
				t.Errorf("%q Equal %q: %v", a, b, x.Equal(y))
			}
		}
	}
	if (brport.Settings{VLAN: 1, Other: "untagged:2"}).Equal(brport.Settings{VLAN: 1}) {
		t.Error("Other is not compared")
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		";", "vlan", "vlan:", "vlan:0", "vlan:+1", "vlan:10;vlan:11", "vlan:10;", "vlan: 10",
		"isolated:1", "isolated;isolated",
		"trunk:", "trunk:1-", "trunk:-1", "trunk:1-2-3", "trunk:5-2", "trunk:1,,2", "native:1", "vlan:1;trunk:2",
		"untagged:20", "Hairpin",
	} {
		if cfg, err := brport.Parse(text); !errors.Is(err, brport.ErrInvalid) {
			t.Errorf("%q: got %+v, %v, want ErrInvalid", text, cfg, err)
		}
	}
}

func TestParseVLANs(t *testing.T) {
	got, err := brport.ParseVLANs("7,2-3,4,3-5,4094")
	if diff := cmp.Diff([]brport.VLANRange{{2, 5}, {7, 7}, {4094, 4094}}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, list := range []string{"", " ", "0", "4095", "1-4095", "99999", "1;2", "a", "2-1"} {
		if got, err := brport.ParseVLANs(list); !errors.Is(err, brport.ErrInvalid) {
			t.Errorf("%q: got %v, %v, want ErrInvalid", list, got, err)
		}
	}
}

func TestSettingsJSON(t *testing.T) {
	cfg := brport.Settings{Trunk: vlans("2-5"), Native: 1, NoFlood: true}
	text, err := json.Marshal(cfg)
	if want := `{"trunk":[{"first":2,"last":5}],"native":1,"no_flood":true}`; err != nil || string(text) != want {
		t.Errorf("got %s, %v, want %s", text, err, want)
	}
	var back brport.Settings
	if err := json.Unmarshal(text, &back); err != nil || !back.Equal(cfg) {
		t.Errorf("got %+v, %v", back, err)
	}
}

// FuzzSettings: settings that Parse accepts are valid, are the same after they are written and
// parsed again, and are written in one way.
func FuzzSettings(f *testing.F) {
	for _, text := range []string{
		"", "vlan:10", "trunk:2-5,7;native:1;isolated;hairpin;nolearn;noflood",
		"trunk:3,1-2;native:3", "trunk:4094-4094", "forward:lldp,lacp",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := brport.Parse(text)
		if err != nil {
			if !errors.Is(err, brport.ErrInvalid) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		written := cfg.String()
		again, err := brport.Parse(written)
		if err != nil || !again.Equal(cfg) || again.String() != written || cfg.Validate() != nil {
			t.Fatalf("%q: %+v is written %q and read %+v, %v", text, cfg, written, again, err)
		}
		if strings.ContainsAny(written, " \t\n") {
			t.Fatalf("%q is written with spaces: %q", text, written)
		}
	})
}

func TestProtocols(t *testing.T) {
	for list, want := range map[string]string{
		"lldp": "lldp", "ptp": "lldp", "0e": "lldp", "lacp,lldp": "lacp,lldp", "lldp,lacp,eapol": "lacp,eapol,lldp",
		"0d,stp,elmi": "stp,elmi,0d", "all": "all", "all,lldp": "all", "00": "stp",
	} {
		p, err := brport.ParseProtocols(list)
		if err != nil || p.String() != want {
			t.Errorf("%s: %q, %v, want %q", list, p, err, want)
		}
		if again, err := brport.ParseProtocols(p.String()); err != nil || again != p {
			t.Errorf("%s: read again %v, %v", list, again, err)
		}
	}
	for list, want := range map[string]string{
		"": "want stp, lacp", "LLDP": "want stp", "lldp,": "want stp", "e": "want stp", "10": "00 to 0f",
		"1e": "00 to 0f", "-1": "00 to 0f", "+1": "00 to 0f",
		"pause": "no bridge forwards pause frames", "01": "ethtool -A", "lldp,pause": "ethtool -A",
	} {
		if p, err := brport.ParseProtocols(list); !errors.Is(err, brport.ErrInvalid) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", list, p, err, want)
		}
	}
	if err := (brport.Settings{Forward: 2}).Validate(); !errors.Is(err, brport.ErrInvalid) {
		t.Errorf("pause: %v", err)
	}
	cfg := brport.Settings{Forward: brport.AllProtocols &^ 1}
	text, err := json.Marshal(cfg)
	var back brport.Settings
	if want := `{"forward":"lacp,eapol,04,05,06,elmi,08,09,0a,0b,0c,0d,lldp,0f"}`; err != nil || string(text) != want ||
		json.Unmarshal(text, &back) != nil || !back.Equal(cfg) {
		t.Errorf("%s, %v", text, err)
	}
	if back, err := brport.Parse(cfg.String()); err != nil || !back.Equal(cfg) || back.Equal(brport.Settings{}) {
		t.Errorf("%q: %+v, %v", cfg, back, err)
	}
	if all, err := brport.ParseVLANs("all"); err != nil || brport.FormatVLANs(all) != "1-4094" {
		t.Errorf("all VLANs: %v, %v", all, err)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"br0": true, "a-b_c.d": true, "fifteen-bytes-x": true,
		"": false, ".": false, "..": false, "sixteen-bytes-xx": false, "a/b": false, "a:b": false,
		"tap%d": false, "a b": false,
	} {
		if got := brport.ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
	}
}

// TestEachSettingCounts: no field can be forgotten in Equal, and in String and Parse.
func TestEachSettingCounts(t *testing.T) {
	set := map[reflect.Kind]any{
		reflect.Int: 7, reflect.Bool: true, reflect.Uint16: brport.AllProtocols, reflect.String: "locked",
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[brport.Settings]()) {
		base := brport.Settings{}
		if field.Name == "Native" {
			base.Trunk = vlans("2-5")
		}
		cfg := base
		v := reflect.ValueOf(&cfg).Elem().FieldByIndex(field.Index)
		if field.Name == "Trunk" {
			cfg.Trunk = vlans("2-5")
		} else if value, ok := set[v.Kind()]; ok {
			v.Set(reflect.ValueOf(value).Convert(v.Type()))
		} else {
			t.Fatalf("this test has no value of %s", v.Type())
		}
		if cfg.Equal(base) || cfg.String() == base.String() {
			t.Errorf("%s: %q, and Equal reports %v", field.Name, cfg, cfg.Equal(base))
		}
		if back, err := brport.Parse(cfg.String()); field.Name != "Other" && (err != nil || !back.Equal(cfg)) {
			t.Errorf("%s: %q is read as %+v, %v", field.Name, cfg, back, err)
		}
	}
}
