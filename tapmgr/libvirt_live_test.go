package tapmgr_test

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmnet/internal/libvirthook/declared"
	"vmnet/internal/nstest"
	"vmnet/libvirt/libvirttest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// libvirtHost is a host with a libvirtd.
type libvirtHost struct {
	*host
	virt *libvirttest.Daemon
}

// newLibvirtHost lets the test run beside others of its kind: they wait for guests most of the
// time.
func newLibvirtHost(t *testing.T) *libvirtHost {
	t.Helper()
	t.Parallel()
	h := newHost(t)
	virt := libvirttest.Start(t, h.ns)
	h.Libvirt = virt.URI()
	return &libvirtHost{h, virt}
}

// domain returns a libvirt guest that is up.
func (h *libvirtHost) domain(dom testvm.Domain) *libvirttest.Guest {
	h.Helper()
	dom.Name = h.name("P2")
	g := h.virt.NewGuest(h, dom)
	g.Boot()
	return g
}

func (h *libvirtHost) target(g *libvirttest.Guest) nic.Target {
	return nic.Target{VM: g.Name}
}

func (h *libvirtHost) spec(g *libvirttest.Guest, nicID string) nic.Spec {
	return nic.Spec{Target: h.target(g), NIC: nicID, Bridge: "br0", Vhost: nic.VhostOff}
}

func (h *libvirtHost) take(g *libvirttest.Guest, nic string) tapmgr.DetachResult {
	h.Helper()
	res, err := h.Detach(h.context(40*time.Second), tapmgr.DetachSpec{Target: h.target(g), NIC: nic})
	if err != nil {
		h.Fatal(err)
	}
	return res
}

// useNIC makes the guest use a NIC, and pings what is on the other side.
func (h *libvirtHost) useNIC(g *libvirttest.Guest, nic nic.NIC, addr, other string) {
	h.Helper()
	if err := g.UseNIC(h.context(30*time.Second), nic.MAC, addr+"/24"); err != nil {
		h.Fatal(err)
	}
	if _, err := g.Ping(h.context(20*time.Second), other); err != nil {
		h.Errorf("ping %s: %v", other, err)
	}
}

// TestLiveLibvirtAttach attaches by name, with 1 and 2 queues, on both machines.
func TestLiveLibvirtAttach(t *testing.T) {
	h := newLibvirtHost(t)
	for _, machine := range []string{"pc", "q35"} {
		g := h.domain(testvm.Domain{Machine: machine, CPUs: 2})
		for queues := 1; queues <= 2; queues++ {
			spec := h.spec(g, "net0")
			spec.Queues, spec.MTU = queues, 1400
			found := h.attach(spec)
			want := nic.NIC{
				VM: g.Name, ID: "net0", Interface: found.Interface, Type: "tap", Source: "br0", Model: "virtio-net-pci",
				MAC:    nic.DefaultMAC(g.Name, "net0").String(),
				Queues: queues, Vhost: "off", State: "forwarding", MTU: 1400, Via: nic.ViaLibvirt,
			}
			found.PID = 0
			if !reflect.DeepEqual(found, want) {
				t.Errorf("attached %+v, want %+v", found, want)
			}
			h.useNIC(g, found, guestAddr, hostAddr)
			h.agrees(g, found)
			res, err := h.Attach(h.context(20*time.Second), spec)
			if err != nil || res.Changed {
				t.Errorf("again: %+v, %v", res, err)
			}
			h.take(g, "net0")
			h.gone(found.Interface)
			h.nothingLeft(g, "net0")
			if res := h.take(g, "net0"); res.Changed {
				t.Error("detached twice")
			}
		}
		nic, old := h.attach(h.spec(g, "net0")), h.spec(g, "net1")
		// to which libvirt gives a tap without a vnet header
		old.Model = map[string]string{"pc": "e1000", "q35": "e1000e"}[machine]
		other := h.attach(old)
		if c, err := h.Check(h.context(20 * time.Second)); err != nil || c.NICs != 2 ||
			len(c.Differences)+len(c.Notices) != 0 {
			t.Errorf("check %+v, %v", c, err)
		}
		h.virt.Virsh("destroy", g.Name)
		h.gone(nic.Interface) // by the law of lifetime, with nobody's help
		h.gone(other.Interface)
	}
}

// agrees demands that virsh and we say the same.
func (h *libvirtHost) agrees(g *libvirttest.Guest, nic nic.NIC) {
	h.Helper()
	if out := h.virt.Virsh("domiflist", g.Name); !strings.Contains(out, nic.Interface) ||
		!strings.Contains(out, nic.MAC) {
		h.Errorf("virsh domiflist: %s", out)
	}
	if out := h.virt.Virsh("dumpxml", g.Name); !strings.Contains(out, "<alias name='ua-vmnet-"+nic.ID+"'/>") ||
		!strings.Contains(out, "<target dev='"+nic.Interface+"' managed='no'/>") {
		h.Errorf("virsh dumpxml: %s", out)
	}
	if running, stored := h.virt.Virsh("metadata", g.Name, declared.Namespace),
		h.virt.Virsh("dumpxml", "--inactive", g.Name); !strings.Contains(running, `id="`+nic.ID+`" bridge="br0"`) ||
		strings.Contains(stored, nic.ID) {
		h.Errorf("declared: %s\nstored:\n%s", running, stored)
	}
	if out := h.virt.Virsh("domifstat", g.Name, nic.Interface); !strings.Contains(out, "rx_packets") ||
		strings.Contains(out, "rx_packets 0") {
		h.Errorf("virsh domifstat: %s", out)
	}
	all, err := h.List(g.Name)
	if err != nil || len(all) != 1 || all[0].PID != g.QEMU() {
		h.Errorf("listed %+v, %v; its QEMU is %d", all, err, g.QEMU())
	}
	ctx := h.context(20 * time.Second)
	if c, err := h.Check(ctx); err != nil || len(c.Differences) != 0 || c.NICs != 1 || len(c.Notices) != 0 {
		h.Errorf("check %+v, %v", c, err)
	}
	details, err := h.Show(ctx, g.Name)
	if err != nil || len(details) != 1 || details[0].Guest == nil || !details[0].Guest.Plugged ||
		details[0].Guest.Device != "ua-vmnet-"+nic.ID {
		h.Errorf("show %+v, %v", details, err)
	}
	if actions, err := h.Reconcile(ctx, true); err != nil || len(actions) != 0 {
		h.Errorf("reconcile would do %+v, %v", actions, err)
	}
}

// TestLiveLibvirtMacvtap hands a macvtap over by its name.
func TestLiveLibvirtMacvtap(t *testing.T) {
	h := newLibvirtHost(t)
	h.wire()
	g := h.domain(testvm.Domain{CPUs: 2})
	for queues := 1; queues <= 2; queues++ {
		spec := h.spec(g, "net0")
		spec.Bridge, spec.Queues, spec.Lower = "", queues, &nic.Lower{Kind: vtap.Macvtap, Device: "eth0"}
		found := h.attach(spec)
		if found.Type != "macvtap" || found.State != nic.Up || found.Queues != queues || found.Via != nic.ViaLibvirt {
			t.Errorf("attached %+v", found)
		}
		node := h.node(found)
		if out := h.virt.Virsh("domiflist", g.Name); !strings.Contains(out, found.Interface) {
			t.Errorf("virsh domiflist: %s", out)
		}
		h.useNIC(g, found, "10.8.0.2", farAddr)
		h.take(g, "net0")
		h.gone(found.Interface)
		if _, err := os.Lstat(node); err == nil {
			t.Errorf("%s is still there", node)
		}
	}
}

// node is the path of a macvtap's node.
func (h *libvirtHost) node(nic nic.NIC) string {
	h.Helper()
	l, err := h.nl.Link(nic.Interface)
	if err != nil {
		h.Fatal(err)
	}
	return fmt.Sprintf("/dev/tap%d", l.Index)
}

// TestLiveLibvirtForeign has NICs that libvirt makes itself, a tap and a macvtap, beside one of
// ours.
func TestLiveLibvirtForeign(t *testing.T) {
	h := newLibvirtHost(t)
	h.wire()
	g := h.domain(testvm.Domain{Interfaces: `
		<interface type='bridge'><mac address='52:54:00:00:00:07'/><source bridge='br0'/><target dev='theirs'/><model type='virtio'/></interface>
		<interface type='direct'><mac address='52:54:00:00:00:08'/><source dev='eth0' mode='bridge'/><model type='e1000e'/></interface>`})
	h.attach(h.spec(g, "net0"))
	all, err := h.ListAll(t.Context(), "")
	if err != nil || len(all) != 3 {
		t.Fatalf("listed %+v, %v", all, err)
	}
	tap := nic.NIC{
		VM: g.Name, ID: "net0", Interface: "theirs", Type: "tap", Source: "br0", Model: "virtio-net-pci",
		MAC:    "52:54:00:00:00:07",
		Queues: 1, Vhost: "off", State: all[1].State, MTU: 1500, PID: g.QEMU(), Foreign: true,
	}
	direct := nic.NIC{
		VM: g.Name, ID: "net1", Interface: all[2].Interface, Type: "macvtap", Source: "eth0", Mode: "bridge",
		Model: "e1000e", MAC: "52:54:00:00:00:08",
		Queues: 1, Vhost: "off", State: nic.Up, MTU: 1500, PID: g.QEMU(), Foreign: true,
	}
	if !reflect.DeepEqual(all[1], tap) || !reflect.DeepEqual(all[2], direct) || all[1].State == "" {
		t.Errorf("listed %+v, want %+v and %+v", all[1:], tap, direct)
	}
	if all[0].Foreign || all[0].Via != nic.ViaLibvirt {
		t.Errorf("ours: %+v", all[0])
	}
	details, err := h.Show(h.context(20*time.Second), g.Name)
	if err != nil || len(details) != 3 || !reflect.DeepEqual(details[1].NIC, tap) || details[1].Bridge != "br0" ||
		len(details[1].Holders) != 1 || details[1].HostMAC != "fe:54:00:00:00:07" || details[2].Lower != "eth0" {
		t.Errorf("show %+v, %v", details, err)
	}
	h.take(g, "net0")
	if res := h.take(g, "net0"); res.Changed {
		t.Error("detach has touched what is libvirt's")
	}
	for id, reversed := range map[string]bool{"net0": false, "net1": true} {
		place, err := h.OpenCapture(h.context(20*time.Second), g.Name, id)
		if err != nil || place.Reversed != reversed {
			t.Errorf("captured at %+v, %v", place, err)
		} else if err := place.Socket.Close(); err != nil {
			t.Error(err)
		}
	}
	h.reconciled("foreign")
	if out := h.virt.Virsh("domiflist", g.Name); !strings.Contains(out, "theirs") ||
		!strings.Contains(out, direct.Interface) {
		t.Errorf("virsh domiflist: %s", out)
	}
	h.Libvirt = h.virt.Socket() + "-none" // without libvirt, the kernel alone tells
	all, err = h.ListAll(t.Context(), g.Name)
	if err != nil || len(all) != 2 || !all[0].Foreign || all[0].Interface != "theirs" || all[0].MAC != "" ||
		all[1].Type != "macvtap" {
		t.Errorf("without libvirt: %+v, %v", all, err)
	}
}

// TestLiveLibvirtMonitor hands fds through libvirt's monitor commands: a tap and a macvtap that go
// with the guest.
func TestLiveLibvirtMonitor(t *testing.T) {
	h := newLibvirtHost(t)
	h.wire()
	for _, machine := range []string{"pc", "q35"} {
		g := h.domain(testvm.Domain{Machine: machine, CPUs: 2})
		tap, lower := h.spec(g, "net0"), h.spec(g, "net1")
		tap.Via, tap.Queues = nic.ViaMonitor, 2
		lower.Via, lower.Bridge, lower.Lower = nic.ViaMonitor, "", &nic.Lower{Kind: vtap.Macvtap, Device: "eth0"}
		for round := range 2 {
			res, err := h.Attach(h.context(30*time.Second), tap)
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Notices) != 1 || !strings.Contains(res.Notices[0], "tainted") || res.NIC.Via != nic.ViaMonitor ||
				res.NIC.Queues != 2 {
				t.Errorf("%+v", res)
			}
			h.useNIC(g, res.NIC, guestAddr, hostAddr)
			macvtapNIC := h.attach(lower)
			h.useNIC(g, macvtapNIC, "10.8.0.2", farAddr)
			if again, err := h.Attach(h.context(30*time.Second), lower); err != nil || again.Changed {
				t.Errorf("again: %+v, %v", again, err)
			}
			if c, err := h.Check(h.context(20 * time.Second)); err != nil || c.NICs != 2 || len(c.Differences) != 0 {
				t.Errorf("check %+v, %v", c, err)
			}
			h.reconciled("via monitor")
			if out := h.virt.Virsh("domiflist", g.Name); strings.Contains(out, res.NIC.Interface) {
				t.Errorf("libvirt knows of it: %s", out)
			}
			if round == 0 {
				h.take(g, "net0")
				h.take(g, "net1")
			} else {
				h.virt.Virsh("destroy", g.Name)
			}
			h.gone(res.NIC.Interface)
			h.free()
		}
	}
}

// TestLiveAllPIDsLibvirtTheirDetach has virsh, and not us, take NICs of ours away.
func TestLiveAllPIDsLibvirtTheirDetach(t *testing.T) {
	nstest.RequireFirstPIDNS(t)
	h := newLibvirtHost(t)
	h.wire()
	g := h.domain(testvm.Domain{Machine: "pc"})
	lower := h.spec(g, "net1")
	lower.Bridge, lower.Lower = "", &nic.Lower{Kind: vtap.Macvtap, Device: "eth0"}
	tap, other := h.attach(h.spec(g, "net0")), h.attach(lower)
	node := h.node(other)
	for _, mac := range []string{tap.MAC, other.MAC} {
		h.virt.Virsh("detach-interface", g.Name, "ethernet", "--mac", mac, "--live")
	}
	h.gone(tap.Interface)
	h.leftOver(g, other, node)

	other = h.attach(lower)
	node = h.node(other)
	h.virt.Virsh("destroy", g.Name)
	h.leftOver(g, other, node)
}

// leftOver demands that a macvtap by name stays when nobody holds it any more, and that reconcile
// removes it and its node.
func (h *libvirtHost) leftOver(g *libvirttest.Guest, found nic.NIC, node string) {
	h.Helper()
	nstest.Eventually(h, 30*time.Second, found.ID+" is left over", func() bool {
		all, err := h.List(g.Name)
		return err == nil && len(all) == 1 && all[0].ID == found.ID && all[0].State == nic.LeftOver
	})
	h.reconciled("left over")
	h.gone(found.Interface)
	if _, err := os.Lstat(node); err == nil {
		h.Errorf("%s is still there", node)
	}
}
