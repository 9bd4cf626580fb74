package tapmgr_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vmnet/internal/vmm/qmptest"
	"vmnet/macvtap/vtap"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// neverUp has each step looked at: after none of them is the NIC's link up with a carrier.
func (h *host) neverUp(name string) {
	h.Run = func(ctx context.Context, list []step.Step) error {
		return step.Run(ctx, list, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
			err := do(ctx)
			if l, readErr := h.nl.Link(name); readErr == nil && l.Up && l.Carrier {
				h.Errorf("after step %q, %s is up with a carrier", s.Name, name)
			}
			return err
		})
	}
	h.Cleanup(func() { h.Run = nil })
}

// TestAttachDown: a NIC whose link should be down is so from the start, on the host and in QEMU,
// and a set raises it.
func TestAttachDown(t *testing.T) {
	h, g := fakeTest(t)
	h.neverUp(g.link("net0"))
	spec := g.spec("net0")
	spec.LinkDown = true
	res, err := g.tryAttach(spec)
	if err != nil || !res.Changed {
		t.Fatalf("%+v, %v", res, err)
	}
	asked := strings.Join(g.State().Asked, " ")
	if want := "netdev_add set_link device_add set_link"; !strings.Contains(asked, want) {
		t.Errorf("QEMU was asked %s, want %s", asked, want)
	}
	h.wants("attached", h.seat(g.link("net0")), "br0, no carrier")
	if res, err := g.tryAttach(spec); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	h.Run = nil
	raise := func(s *nic.Spec) { s.LinkDown = false }
	if _, err := h.Set(h.context(20*time.Second), nic.Target{VM: g.Name}, "net0",
		func(s nic.Spec) (nic.Spec, error) { raise(&s); return s, nil }); err != nil {
		t.Fatal(err)
	}
	h.wants("raised", h.seat(g.link("net0")), "br0")
	if down := g.State().Down; len(down) > 0 {
		t.Errorf("QEMU still has %v down", down)
	}
	_, err = g.tryAttach(spec)
	want := "link is up, asked for down (vmnet set --vm " + g.Name + " --nic net0 --link down)"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("attach of a NIC that is up: %v", err)
	}
}

// TestAttachDownKilled: an attach that was killed after the guest had the device, and before its
// link was down there, is completed by reconcile.
func TestAttachDownKilled(t *testing.T) {
	for _, again := range []bool{false, true} {
		h, g := newUserHost(t), (*fakeGuest)(nil)
		g = h.fake(qmptest.Config{})
		spec := g.spec("net0")
		spec.LinkDown = true
		g.killedAttach(spec, "device_add vmnet-net0")
		if g.State().Down["vmnet-net0"] {
			t.Fatal("it is down already")
		}
		if again {
			if _, err := g.tryAttach(spec); err != nil {
				t.Error(err)
			}
		} else {
			h.settled()
		}
		if !g.State().Down["vmnet-net0"] {
			t.Errorf("again %v: QEMU has %v down", again, g.State().Down)
		}
		h.wants("completed", h.seat(g.link("net0")), "br0, no carrier")
	}
}

// TestLiveAttachDown is TestAttachDown for each kind of NIC, on a real QEMU.
func TestLiveAttachDown(t *testing.T) {
	h := newHost(t)
	h.quietLAN()
	s := h.runSwitch()
	h.Switches = []string{s.path}
	g := h.empty()
	for what, change := range map[string]func(*nic.Spec){
		"tap":     func(*nic.Spec) {},
		"queues":  func(n *nic.Spec) { n.Queues = 2 },
		"macvtap": func(n *nic.Spec) { n.Bridge, n.Lower = "", &nic.Lower{Kind: vtap.Macvtap, Device: "eth0"} },
		"switch":  func(n *nic.Spec) { n.Bridge, n.Switch = "", &nic.Switch{Name: s.path, By: nic.ByTap} },
		"socket":  func(n *nic.Spec) { n.Bridge, n.Switch = "", &nic.Switch{Name: s.path, By: nic.BySocket} },
		"routed": func(n *nic.Spec) {
			n.Bridge, n.Routed, n.IP = "", "eth0", []netip.Addr{netip.MustParseAddr(routedAddr)}
		},
	} {
		id := what // which is also the NIC's
		spec := g.spec(id)
		change(&spec)
		spec.LinkDown = true
		name, _ := nic.InterfaceName(g.name, id)
		h.neverUp(name)
		h.attach(spec)
		h.Run = nil
		if got := h.check(); len(got) != 0 {
			t.Errorf("%s: check finds %+v", what, got)
		}
		for _, down := range []bool{false, true} {
			if _, err := h.setNIC(g, id, func(n *nic.Spec) { n.LinkDown = down }); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if got := h.check(); len(got) != 0 {
			t.Errorf("%s, set: check finds %+v", what, got)
		}
	}
}
