package nic

import (
	"errors"
	"net"
	"strings"
	"testing"

	"vmnet/bridge/brport"
)

func onSwitch() Spec {
	return Spec{Target: Target{VM: "P2"}, Switch: &Switch{Name: "sw0"}}
}

func TestValidateSwitch(t *testing.T) {
	for _, by := range []By{"", ByAuto, BySocket, ByTap, ByVhostUser} {
		s := onSwitch()
		s.Switch.By = by
		if err := s.Validate(); err != nil {
			t.Errorf("by %q: %v", by, err)
		}
	}
	for want, change := range map[string]func(*Spec){
		"either on a bridge":                        func(s *Spec) { s.Bridge = "br0" },
		"on a parent device, on a switch or routed": func(s *Spec) { s.Lower = &Lower{Device: "eth0"} },
		"switch name":                               func(s *Spec) { s.Switch.Name = "a b" },
		"at most 107 bytes":                         func(s *Spec) { s.Switch.Name = "/" + strings.Repeat("x", 107) },
		`by "magic"`:                                func(s *Spec) { s.Switch.By = "magic" },
		"2 queues: a socket":                        func(s *Spec) { s.Switch.By, s.Queues = BySocket, 2 },
		"cannot serve a socket":                     func(s *Spec) { s.Switch.By, s.Vhost = BySocket, VhostOn },
		"no interface that":                         func(s *Spec) { s.Switch.By, s.Device = BySocket, "tap7" },
		"128 queues: vhost-user":                    func(s *Spec) { s.Switch.By, s.Queues = ByVhostUser, 128 },
		"vhost-net is the kernel's":                 func(s *Spec) { s.Switch.By, s.Vhost = ByVhostUser, VhostOn },
		"could be named tap7":                       func(s *Spec) { s.Switch.By, s.Device = ByVhostUser, "tap7" },
		"model e1000 has no rings":                  func(s *Spec) { s.Switch.By, s.Model = ByVhostUser, "e1000" },
		"cannot stay down":                          func(s *Spec) { s.Switch.By, s.LinkDown = ByVhostUser, true },
		"--via monitor":                             func(s *Spec) { s.Via = ViaLibvirt },
		"storm limit of -2":                         func(s *Spec) { s.Switch.Storm = -2 },
		"65537 addresses":                           func(s *Spec) { s.Switch.MaxAddresses = 65537 },
		"both VLAN and trunk": func(s *Spec) {
			s.Port = brport.Settings{VLAN: 1, Trunk: []brport.VLANRange{{First: 2, Last: 3}}}
		},
		"cannot store a NIC":       func(s *Spec) { s.Via, s.Persistent = ViaMonitor, true },
		"begin with fe are those ": func(s *Spec) { s.MAC = net.HardwareAddr{0xfe, 0, 0, 0, 0, 1} },
	} {
		s := onSwitch()
		change(&s)
		if err := s.Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ErrInvalid with %q", err, want)
		}
	}
}

func TestAliasOfASwitchPort(t *testing.T) {
	want := Record{
		VM: "P2", NIC: "net0", Type: TypeSocket, Source: "/run/a b/sw", Switch: true, Port: "vlan:10",
		Model:  DefaultModel,
		Limits: SwitchLimits{LockMAC: true, Storm: NoLimit, MaxAddresses: 7},
		MAC:    net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, Queues: 1, Phase: PhaseAttaching,
		Netns: 4026531840,
	}
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, ok := ParseRecord(text)
	again, _ := got.Encode()
	if !ok || again != text || got.Limits != want.Limits || !got.Switch || got.Source != want.Source ||
		got.Netns != want.Netns {
		t.Errorf("%s became %+v, %v", text, got, ok)
	}
	for _, bad := range []string{
		strings.Replace(text, " switch=on", "", 1), // a socket leads to a switch alone
		strings.Replace(text, "storm=-1", "storm=-2", 1),
		strings.Replace(text, "storm=-1", "storm=x", 1),
		strings.Replace(text, "netns=4026531840", "netns=x", 1),
		strings.Replace(text, "lock=on", "lock=off", 1),
		strings.Replace(text, "addresses=7", "addresses=70000", 1),
	} {
		if r, ok := ParseRecord(bad); ok {
			t.Errorf("%s became %+v", bad, r)
		}
	}
}

func TestSwitchPortOfARecord(t *testing.T) {
	r := Record{Type: TypeSocket, Switch: true, MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}}
	if cfg := r.SwitchPortConfig(); cfg.Storm.Broadcast != DefaultStorm || cfg.MaxAddresses != DefaultMaxAddresses ||
		cfg.MTU != 1500 || cfg.MACs != nil {
		t.Errorf("by default %+v", cfg)
	}
	r.Limits, r.MTU, r.Type = SwitchLimits{LockMAC: true, Storm: NoLimit, MaxAddresses: 9}, 9000, TypeTap
	if cfg := r.SwitchPortConfig(); cfg.Storm.Unknown != 0 || cfg.MaxAddresses != 9 ||
		cfg.MTU != 0 || len(cfg.MACs) != 1 {
		t.Errorf("with limits of its own %+v", cfg)
	}
	if text := r.Limits.String(); text != "locked;storm:off;addresses:9" {
		t.Errorf("for people: %s", text)
	}
}

// TestDefaultsAreOneWay: who names a default asks for the same as who does not.
func TestDefaultsAreOneWay(t *testing.T) {
	named := Switch{Storm: DefaultStorm, MaxAddresses: DefaultMaxAddresses}
	if named.Limits() != (SwitchLimits{}) {
		t.Errorf("%+v", named.Limits())
	}
}
