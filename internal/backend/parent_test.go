package backend

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// onTap is a Maker in a netns with the bridge br0 and two taps: port0 is a port of it, eth0 is not.
func onTap(t *testing.T) *Maker {
	t.Helper()
	nstest.RequireTun(t)
	ns := nstest.NewInUserNS(t)
	m, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	b, err := bridge.Open(ns.Path())
	if err == nil {
		t.Cleanup(b.Close)
		err = b.Create(bridge.Config{Name: "br0"})
	}
	if err != nil {
		t.Fatal(err)
	}
	br := linkOf(t, m, "br0")
	for name, set := range map[string]rtnl.Attr{"port0": rtnl.Master(br.Index), "eth0": rtnl.MTU(9000)} {
		tap, err := tun.Create(ns, name, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tap.Close() })
		if err := m.NL.Set(linkOf(t, m, name).Index, set); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func linkOf(t *testing.T, m *Maker, name string) *rtnl.Link {
	t.Helper()
	l, err := m.NL.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestPlanOnAParentDevice: what a NIC on a parent device gets of it, and on which devices there can
// be none.
func TestPlanOnAParentDevice(t *testing.T) {
	t.Parallel()
	m := onTap(t)
	eth := linkOf(t, m, "eth0")
	ipvtap := func(s *nic.Spec) { onLower(s); onIPVtap(s) }
	for name, tc := range map[string]struct {
		spec   func(*nic.Spec)
		device string
		mac    net.HardwareAddr // of the guest, if it is planned
		want   error
		text   string
	}{
		"a macvtap":              {onLower, "eth0", guestMAC, nil, ""},
		"an ipvtap":              {ipvtap, "eth0", eth.MAC, nil, ""},
		"a bridge":               {onLower, "br0", guestMAC, nil, ""},
		"a device that is not":   {onLower, "nowhere", nil, fs.ErrNotExist, "ip link shows the devices that are here"},
		"a port of a bridge":     {onLower, "port0", nil, syscall.EBUSY, "br0"},
		"an ipvtap, on the same": {ipvtap, "port0", nil, syscall.EBUSY, "br0"},
		"an ipvtap of a guest with another address": {
			func(s *nic.Spec) { ipvtap(s); s.Prepared, s.MAC = true, guestMAC }, "eth0", nil, nil,
			"has its parent device's address",
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := ask(func(s *nic.Spec) { tc.spec(s); s.Lower.Device = tc.device })
			h := m.New(spec, nic.PhaseAttaching)
			defer h.Close()
			err := h.PlanInterface(t.Context())
			if tc.mac == nil {
				if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("%v, want %v: %s", err, tc.want, tc.text)
				}
				return
			}
			parent := linkOf(t, m, tc.device)
			if r := h.Record; err != nil || r.MAC.String() != tc.mac.String() || r.Source != tc.device ||
				r.Type != string(spec.Lower.Kind) || r.Mode != spec.Lower.Mode || h.Interface.MaxMTU != parent.MTU ||
				(r.Netns != 0) != (spec.Lower.Kind == vtap.IPVtap) {
				t.Errorf("record %+v of %+v, %v", r, h.Interface, err)
			}
		})
	}
}

// TestConfigOfAMacvtap: a macvtap has the guest's address, or in mode passthru, where the guest may
// have the parent's, that.
func TestConfigOfAMacvtap(t *testing.T) {
	parent := &rtnl.Link{Name: "eth0", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}}
	for name, tc := range map[string]struct {
		edit func(*nic.Spec)
		want net.HardwareAddr
	}{
		"bridge":                     {onLower, guestMAC},
		"passthru":                   {func(s *nic.Spec) { onLower(s); s.Lower.Mode, s.MAC = "passthru", nil }, parent.MAC},
		"passthru with an address":   {func(s *nic.Spec) { onLower(s); s.Lower.Mode = "passthru" }, guestMAC},
		"an ipvtap, which takes one": {func(s *nic.Spec) { onLower(s); onIPVtap(s) }, nil},
	} {
		s := &macvtapInterface{spec: ask(tc.edit), parent: parent, name: "P2-net0"}
		if got := s.config(); got.MAC.String() != tc.want.String() || got.Name != "P2-net0" {
			t.Errorf("%s: %+v, want address %s", name, got, tc.want)
		}
	}
}

// TestRetryNamesTheError: what is not in the way of an interface is an error at once.
func TestRetryNamesTheError(t *testing.T) {
	t.Parallel()
	m := onTap(t)
	for _, want := range []error{nil, syscall.EPERM, syscall.EBUSY} {
		tries := 0
		err := m.Retry(t.Context(), linkOf(t, m, "port0"), func() error { tries++; return want })
		if !errors.Is(err, want) || tries != 1 {
			t.Errorf("%v: %v after %d tries", want, err, tries)
		}
	}
	stop, tries := errors.New("stopped"), 0
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	err := m.Retry(ctx, linkOf(t, m, "eth0"), func() error {
		if tries++; tries == 2 {
			cancel(stop)
		}
		return syscall.EADDRINUSE
	})
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.Is(err, stop) || tries != 2 {
		t.Errorf("until the caller ends it: %v after %d tries", err, tries)
	}
	if name, err := m.LinkName("eth0"); err != nil || name != "eth0" {
		t.Errorf("name %q, %v", name, err)
	}
	if _, err := m.LinkName("nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no link: %v", err)
	}
}
