package macvlan_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/kernel/macvlan"
	"vmnet/macvtap/vtap"
	"vmnet/testvm/lab"
)

// TestLabBondPortIsNoParent: a bond receives the frames of its ports, as a bridge does.
func TestLabBondPortIsNoParent(t *testing.T) {
	lab.Inside(t)
	w := newWire(t)
	w.ip("link", "add", "bond0", "type", "bond")
	w.ip("link", "set", "eth0", "down")
	w.ip("link", "set", "eth0", "master", "bond0")
	w.ip("link", "set", "eth0", "up")
	w.read()
	_, err := macvlan.Create(w.nl, w.parent, w.config())
	if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "bond0 (bond)") {
		t.Errorf("got %v, want bond0 named", err)
	}
}

// TestLabMacvtapAndIPVtapDoNotShareAParent: each receives all frames of its parent device.
func TestLabMacvtapAndIPVtapDoNotShareAParent(t *testing.T) {
	lab.Inside(t)
	w := newWire(t)
	w.create(w.config())
	cfg := w.config()
	cfg.Kind, cfg.Mode, cfg.MAC, cfg.Addrs = vtap.IPVtap, "l2", nil, prefixes(t, "10.9.0.2/24")
	_, err := macvlan.Create(w.nl, w.parent, cfg)
	if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "a macvtap, which excludes an ipvtap") {
		t.Errorf("got %v", err)
	}
}

// TestLabGroupsOfAnIPVtap: an ipvtap has the groups that were set, as a macvtap does.
func TestLabGroupsOfAnIPVtap(t *testing.T) {
	lab.Inside(t)
	w := newWire(t)
	cfg := w.config()
	cfg.Kind, cfg.Mode, cfg.MAC, cfg.Addrs = vtap.IPVtap, "l2", nil, prefixes(t, "10.9.0.2/24")
	d := w.create(cfg)
	if err := errors.Join(d.OpenQueue(), d.Up()); err != nil {
		t.Fatal(err)
	}
	mdns := net.HardwareAddr{1, 0, 0x5e, 0, 0, 0xfb}
	for _, groups := range [][]net.HardwareAddr{{mdns}, nil} {
		if changed, err := macvlan.SetGroups(d.Netns(), d.Link, groups); err != nil || !changed {
			t.Errorf("%v: changed is %v: %v", groups, changed, err)
		}
		if got, err := macvlan.Groups(d.Netns(), d.Link); err != nil || len(got) != len(groups) {
			t.Errorf("groups %v, want %v: %v", got, groups, err)
		}
	}
}

func prefixes(t *testing.T, texts ...string) (all []netip.Prefix) {
	t.Helper()
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}
