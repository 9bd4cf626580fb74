package uplink

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestSubinterface(t *testing.T) {
	for _, test := range []struct {
		parent string
		vlan   int
		want   string
	}{{"eth1", 100, "eth1.100"}, {"enp0s31f6", 4094, "enp0s31f6.4094"}, {"enx001122334455", 7, "enx001122d3ca.7"}} {
		got := subinterface(test.parent, test.vlan)
		if len(got) > 15 || got != test.want {
			t.Errorf("%s, VLAN %d: %q, want %q", test.parent, test.vlan, got, test.want)
		}
	}
}

func TestTaken(t *testing.T) {
	for kind, want := range map[string]string{
		"bond":        "it is a port of bond m0 (write uplink m0)",
		"openvswitch": "of Open vSwitch (", "vrf": "(ip link set eth1 nomaster)",
		"bridge": "vmnet attach --bridge m0",
	} {
		err := taken(&rtnl.Link{Name: "eth1"}, &rtnl.Link{Name: "m0", Kind: kind})
		if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestMemberships(t *testing.T) {
	all := []Membership{{"br0", true, 100}, {"a:b", false, 7}}
	text := FormatMemberships(all)
	if got := ParseMemberships(text); text != "self:100:br0,port:7:a:b" || !reflect.DeepEqual(got, all) {
		t.Errorf("%s: %+v", text, got)
	}
	for _, odd := range []string{"", ",", "self", "self:x:br0", "other:1:br0", "self:1:", "self:1"} {
		if got := ParseMemberships(odd); len(got) > 0 {
			t.Errorf("%q: %+v", odd, got)
		}
	}
}

func TestSnapshot(t *testing.T) {
	ns, err := netns.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	s := Snapshot{filepath.Join(t.TempDir(), "state", "lan.move"), ns}
	if saved, err := s.Read(); saved != nil || err != nil || s.Guarded() {
		t.Errorf("none: %+v, %v", saved, err)
	}
	h := &rtnl.HostConfig{Name: "eth1", Link: 7, Addrs: [][]byte{{2, 24}}}
	if err := s.Write("eth1", true, h); err != nil {
		t.Fatal(err)
	}
	saved, err := s.Read()
	if err != nil || saved == nil || !saved.Created || saved.Port != "eth1" || !reflect.DeepEqual(&saved.Config, h) {
		t.Errorf("%+v, %v", saved, err)
	}
	unlock, err := s.Lock(t.Context())
	if err != nil || !s.Guarded() {
		t.Fatalf("%v, guarded %v", err, s.Guarded())
	}
	if err := unlock(); err != nil || s.Guarded() {
		t.Errorf("%v, guarded %v", err, s.Guarded())
	}
	text, err := os.ReadFile(s.Path)
	if err != nil {
		t.Fatal(err)
	}
	for of, other := range map[string]string{
		"another boot":      strings.Replace(string(text), `"Boot":"`, `"Boot":"x`, 1),
		"another namespace": strings.Replace(string(text), `"Netns":`, `"Netns":1`, 1),
	} {
		if err := os.WriteFile(s.Path, []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		if saved, err := s.Read(); saved != nil || err != nil {
			t.Errorf("of %s: %+v, %v", of, saved, err)
		}
	}
	if err := os.WriteFile(s.Path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(); err == nil || !strings.Contains(err.Error(), "(remove it)") {
		t.Error(err)
	}
	if err := errors.Join(s.Remove(), s.Remove()); err != nil {
		t.Error(err)
	}
}

func TestNow(t *testing.T) {
	first, err := Now()
	second, secondErr := Now()
	if err != nil || secondErr != nil || first <= 0 || second < first || second-first > time.Minute {
		t.Errorf("%v, %v, %v, %v", first, second, err, secondErr)
	}
}
