package tapmgr_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// spoiled is what somebody changes of a NIC, by a command in its netns, and the property that check
// misses then.
type spoiled struct {
	what   string
	change string // DEV is the NIC's interface
}

// runIn runs a line of a program and its arguments in a netns; DEV in it is the NIC's interface.
func (h *host) runIn(ns *netns.NS, nic nic.NIC, line string) {
	h.Helper()
	argv := strings.Fields(strings.ReplaceAll(line, "DEV", nic.Interface))
	if err := ns.Do(func() error { h.run(argv[0], argv[1:]...); return nil }); err != nil {
		h.Fatal(err)
	}
}

// mended spoils a NIC in each way, and demands that check tells it with the cure, that reconcile
// and the same attach again each mend it, and that all is as it should be then.
func (h *host) mended(spec nic.Spec, made nic.NIC, ways []spoiled) {
	h.Helper()
	in := h.netnsOf(spec.VM, made.ID)
	mends := map[string]func(){
		"reconcile": func() {
			actions, err := h.Reconcile(h.context(20*time.Second), false)
			if err != nil || len(actions) == 0 || !actions[0].Changed || actions[0].Error != "" {
				h.Errorf("reconcile: %+v, %v", actions, err)
			}
		},
		"attach": func() {
			if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || !res.Changed {
				h.Errorf("the same again: %+v, %v", res, err)
			}
		},
	}
	for _, way := range ways {
		for name, mend := range mends {
			h.runIn(in, made, way.change)
			got := h.check()
			if len(got) != 1 || got[0].What != way.what || got[0].MendedBy != nic.MendReconcile ||
				got[0].Mend != "vmnet reconcile" {
				h.Errorf("%s: check %+v, want %s", way.change, got, way.what)
			}
			mend()
			if got := h.check(); len(got) != 0 {
				h.Errorf("%s, after %s: check %+v", way.change, name, got)
			}
		}
	}
	if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || res.Changed || len(res.Differences) != 0 {
		h.Errorf("the same once more: %+v, %v", res, err)
	}
	h.reconciled()
}

// netnsOf is the netns that a NIC's link is in.
func (h *host) netnsOf(vm, nic string) *netns.NS {
	h.Helper()
	details, err := h.Show(h.context(10*time.Second), vm)
	if err != nil {
		h.Fatal(err)
	}
	for _, d := range details {
		if d.ID == nic && d.Netns != "" {
			ns, err := netns.Open(d.Netns)
			if err != nil {
				h.Fatal(err)
			}
			h.Cleanup(func() { _ = ns.Close() })
			return ns
		}
	}
	return h.ns
}

// altName is the altname of a guest's net0.
func altName(g *guest) string {
	_, alt := nic.InterfaceName(g.name, "net0")
	return alt
}

func TestLiveTapIsMended(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	spec := g.spec("net0")
	spec.Port = brport.Settings{Isolated: true}
	nic := h.attach(spec)
	for _, mtu := range []string{"1600", "1500"} { // one that was never set follows the ports'
		h.ip("link", "set", "br0", "mtu", mtu)
	}
	h.settled()
	h.mended(spec, nic, []spoiled{
		{"link", "ip link set DEV down"},
		{"carrier", "ip link set DEV carrier off"},
		{"host MAC", "ip link set DEV address 52:54:00:09:09:09"},
		{"MTU", "ip link set DEV mtu 1400"},
		{"MTU", "ip link set DEV mtu 1200"}, // for which the kernel ends IPv6, and begins it again
		{"IPv6 of the host", "ip link set DEV addrgenmode eui64"},
		{"name", "ip link property del dev DEV altname " + altName(g)},
		{"bridge", "ip link set DEV nomaster"},
		{"port", "ip link set DEV type bridge_slave isolated off"},
		{"port", "ip link set DEV type bridge_slave hairpin on"},
		{"port", "ip link set DEV type bridge_slave learning off"},
		{"port", "ip link set DEV type bridge_slave flood off"},
		{"port", "ip link set DEV type bridge_slave mcast_flood off"},
		{"port", "ip link set DEV type bridge_slave bcast_flood off"},
		{"port", "ip link set DEV type bridge_slave locked on"},
		{"port state", "bridge link set dev DEV state 0"},
	})
	l, err := h.nl.Link(nic.Interface)
	if err != nil || l.HostIPv6 || l.Port.State.String() != "forwarding" {
		t.Errorf("%+v, %v", l, err)
	}
	h.ip("link", "set", nic.Interface, "addrgenmode", "eui64")
	h.settled()
	if err := h.ns.Do(func() error {
		return exec.Command("sh", "-c", "! grep -q "+nic.Interface+" /proc/thread-self/net/if_inet6").Run()
	}); err != nil {
		t.Errorf("the host has an IPv6 address on the guest's tap: %v", err)
	}

	// Several at once: what one mends must not spoil another.
	h.ip("link", "set", "br0", "mtu", "1400")
	for _, line := range []string{"nomaster", "address 52:54:00:09:09:09", "addrgenmode eui64", "mtu 1200", "down"} {
		h.runIn(h.ns, nic, "ip link set DEV "+line)
	}
	if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || !res.Changed ||
		res.NIC.State != "forwarding" {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check %+v", got)
	}
}

func TestLiveMacvtapIsMended(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.empty()
	spec := g.lowerSpec("net0", nic.Lower{})
	nic := h.attach(spec)
	h.mended(spec, nic, []spoiled{
		{"link", "ip link set DEV down"},
		{"host MAC", "ip link set DEV address 52:54:00:09:09:09"},
		{"MTU", "ip link set DEV mtu 1400"},
		{"IPv6 of the host", "ip link set DEV addrgenmode eui64"},
		{"mode", "ip link set DEV type macvtap mode private"},
		{"rx filter", "ip link set DEV allmulticast off"},
		{"name", "ip link property del dev DEV altname " + altName(g)},
	})
}

// TestLiveAdminMends: attach, check and reconcile report what only an administrator can mend, with
// the command.
func TestLiveAdminMends(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.empty()
	tap, lower := g.spec("net0"), g.lowerSpec("net1", nic.Lower{Kind: vtap.Macvtap})
	h.attach(tap)
	h.attach(lower)
	for _, c := range []struct {
		down, what, cure string
		spec             nic.Spec
	}{
		{"br0", "bridge state", "ip link set br0 up", tap},
		{"eth0", "parent device", "ip link set eth0 up", lower},
	} {
		h.ip("link", "set", c.down, "down")
		if got := h.check(); len(got) != 1 || got[0].What != c.what || got[0].MendedBy != nic.MendAdmin ||
			got[0].Mend != c.cure {
			t.Errorf("check %+v, want %s", got, c.what)
		}
		actions, err := h.Reconcile(h.context(20*time.Second), false)
		if err != nil || len(actions) != 1 || actions[0].Changed || !strings.Contains(actions[0].Action, c.cure) {
			t.Errorf("reconcile %+v, %v", actions, err)
		}
		res, err := h.Attach(h.context(20*time.Second), c.spec)
		if err != nil || res.Changed || len(res.Differences) != 1 || res.Differences[0].What != c.what ||
			!strings.Contains(strings.Join(res.Notices, " "), c.cure) {
			t.Errorf("the same again: %+v, %v", res, err)
		}
		h.runIn(h.ns, nic.NIC{}, c.cure)
		if got := h.check(); len(got) != 0 {
			t.Errorf("after %s: check %+v", c.cure, got)
		}
	}
}

// TestLiveRenamed: a bridge and a parent device that were renamed under a NIC are followed, and are
// found by either name.
func TestLiveRenamed(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.empty()
	tap, lower := g.spec("net0"), g.lowerSpec("net1", nic.Lower{})
	h.attach(tap)
	h.attach(lower)
	tap1 := g.spec("net2")
	h.attach(tap1)
	for old, name := range map[string]string{"br0": "lan0", "eth0": "wan0"} {
		h.ip("link", "set", old, "down")
		h.ip("link", "set", old, "name", name)
		h.ip("link", "set", name, "up")
	}
	nics, err := h.List(g.name)
	if err != nil || len(nics) != 3 || nics[0].Source != "lan0" || nics[0].State != "forwarding" ||
		nics[1].Source != "wan0" || nics[2].Source != "lan0" {
		t.Errorf("list %+v, %v", nics, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check %+v", got)
	}
	h.reconciled()
	if info, err := h.ShowParent(t.Context(), "wan0"); err != nil || len(info.NICs) != 1 {
		t.Errorf("lower %+v, %v", info, err)
	}
	for _, name := range []string{"br0", "lan0"} {
		tap.Bridge = name
		if res, err := h.Attach(h.context(20*time.Second), tap); err != nil || res.Changed || res.NIC.Source != "lan0" {
			t.Errorf("attach to %s again: %+v, %v", name, res, err)
		}
	}
	for _, name := range []string{"eth0", "wan0"} {
		lower.Lower.Device = name
		if res, err := h.Attach(h.context(20*time.Second), lower); err != nil || res.Changed ||
			res.NIC.Source != "wan0" {
			t.Errorf("attach to %s again: %+v, %v", name, res, err)
		}
	}

	// A new bridge of the old name is another one, and the NIC stays where it is.
	h.bridge(bridge.Config{Name: "br0"})
	if got := h.check(); len(got) != 0 {
		t.Errorf("with a new br0: check %+v", got)
	}
	tap.Bridge = "br0"
	if _, err := h.Attach(h.context(20*time.Second), tap); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "bridge is lan0, asked for br0") {
		t.Errorf("attach to the new br0: %v", err)
	}

	// One that was taken off the renamed bridge is put back there.
	nic := nics[0].Interface
	h.ip("link", "set", nic, "nomaster")
	h.settled()
	if l, err := h.nl.Link(nic); err != nil || h.masterOf(l) != "lan0" {
		t.Errorf("%+v, %v: want it on lan0", l, err)
	}

	// One that has lost its bridge for good is put on what has its name, and followed from there.
	if err := h.deleteBridge("lan0"); err != nil {
		t.Fatal(err)
	}
	h.settled()
	h.ip("link", "set", "br0", "down")
	h.ip("link", "set", "br0", "name", "lan1")
	h.ip("link", "set", "lan1", "up")
	if nics, err = h.List(g.name); err != nil || nics[0].Source != "lan1" || nics[0].State != "forwarding" {
		t.Errorf("list %+v, %v", nics, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check %+v", got)
	}
}

// TestLiveParentIsTaken: a device whose frames another device or a switch takes cannot be a parent
// device. If a switch takes them later, check reports it.
func TestLiveParentIsTaken(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.empty()
	spec := g.lowerSpec("net0", nic.Lower{})
	refused := func(why string) {
		t.Helper()
		_, err := h.Attach(h.context(20*time.Second), spec)
		if !errors.Is(err, nic.ErrLink) || !strings.Contains(err.Error(), why) {
			t.Errorf("attach: %v, want it refused: %s", err, why)
		}
	}
	h.ip("link", "set", "eth0", "master", "br0")
	refused("eth0 is a port of br0")
	h.ip("link", "set", "eth0", "nomaster")

	claim := func() (end func()) {
		files, err := endpoint.PacketFiles(h.ns, "eth0")
		if err != nil {
			t.Fatal(err)
		}
		return func() { fdpass.CloseAll(files) }
	}
	end := claim()
	refused("eth0 is a port of a userspace switch")
	if _, _, err := h.SetHostAccess(h.context(20*time.Second), "eth0", true, nil); err == nil ||
		!strings.Contains(err.Error(), "userspace switch") {
		t.Errorf("host access: %v", err)
	}
	end()
	h.attach(spec)
	end = claim() // which vmnet switch itself refuses by now
	if got := h.check(); len(got) != 1 || got[0].What != "frames of the parent device" ||
		got[0].MendedBy != nic.MendAdmin {
		t.Errorf("check %+v", got)
	}
	end()
	if got := h.check(); len(got) != 0 {
		t.Errorf("check %+v", got)
	}
}
