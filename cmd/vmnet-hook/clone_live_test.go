package main

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vmnet/bridge/brport"
	"vmnet/internal/libvirthook/declared"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// attach gives a guest a NIC, and wants no notice about it.
func (h *host) attach(spec nic.Spec) nic.NIC {
	h.Helper()
	h.Libvirt = h.virt.URI()
	spec.Vhost = nic.VhostOff
	ctx, cancel := testContext()
	defer cancel()
	res, err := h.Attach(ctx, spec)
	if err != nil || len(res.Notices) != 0 {
		h.Fatalf("%v, notices %q", err, res.Notices)
	}
	return res.NIC
}

func testContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

func onBr0(guest, nicID string) nic.Spec {
	return nic.Spec{Target: nic.Target{VM: guest}, NIC: nicID, Bridge: "br0"}
}

var (
	uuid   = regexp.MustCompile(`<uuid>.*</uuid>`)
	mac    = regexp.MustCompile(`<mac address='52:54:00:..:..:..'/>`)
	target = regexp.MustCompile(`<target dev='[^']*'`)
)

// clone defines a guest as virt-clone does: with another name, UUID and MACs, and interfaces
// without names of devices (_setup_nics in virtinst/cloner.py of virt-manager).
func (h *host) clone(of, name string) {
	h.Helper()
	n := 0x40
	text := h.named(of, name)
	text = mac.ReplaceAllStringFunc(text, func(string) string {
		n++
		return fmt.Sprintf("<mac address='%s'/>", guestMAC(n))
	})
	text = target.ReplaceAllString(text, "<target")
	h.virt.Define(strings.ReplaceAll(text, "<target/>", ""))
}

// named is the definition of a guest with another name and UUID.
func (h *host) named(of, name string) string {
	h.Helper()
	return uuid.ReplaceAllString(strings.Replace(h.virt.Virsh("dumpxml", "--inactive", of), "<name>"+of+"</name>",
		"<name>"+name+"</name>", 1), "")
}

// TestLiveClone: a clone of a guest starts with NICs of its own, beside the first guest.
func TestLiveClone(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	h.define("web", "", "")
	h.virt.Virsh("start", "web")
	first := onBr0("web", "net0")
	first.Persistent, first.Queues, first.MTU, first.Port = true, 2, 1400, brport.Settings{Isolated: true}
	h.attach(first)
	second := onBr0("web", "net1")
	second.Persistent, second.Model = true, "e1000"
	h.attach(second)
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()

	h.clone("web", "clone")
	h.virt.Virsh("start", "clone")
	h.virt.Virsh("start", "web")
	for guest, mac := range map[string]func(nic string, n int) string{
		"web":   func(nicID string, _ int) string { return nic.DefaultMAC("web", nicID).String() },
		"clone": func(_ string, n int) string { return guestMAC(n).String() },
	} {
		for i, spec := range []nic.Spec{first, second} {
			got := h.nics(guest)[spec.NIC]
			want := nic.NIC{
				VM: guest, ID: spec.NIC, Interface: got.Interface, Type: "tap", Source: "br0", Port: spec.Port.String(),
				MAC: mac(spec.NIC, 0x41+i), PID: h.virt.QEMU(guest),
				Model: "virtio-net-pci", Queues: 2, MTU: 1400, Vhost: "off", State: "forwarding", Via: nic.ViaLibvirt,
			}
			if i == 1 {
				want.Model, want.Queues, want.MTU = "e1000", 1, 1500
			}
			h.hasNIC(want)
			if guest == "web" && got.Interface != "web-"+spec.NIC || h.isolated(got.Interface) != (i == 0) {
				t.Errorf("%+v", got)
			}
		}
	}
	ctx, cancel := testContext()
	defer cancel()
	if c, err := h.Check(ctx); err != nil || c.NICs != 4 || len(c.Differences)+len(c.Notices) != 0 {
		t.Errorf("check %+v, %v", c, err)
	}
	h.virt.Virsh("managedsave", "clone")
	h.virt.Virsh("start", "clone")
	if n := h.nics("clone")["net0"]; n.State != "forwarding" || n.Port != "isolated" || n.Queues != 2 {
		t.Errorf("restored: %+v", n)
	}
	h.virt.Virsh("destroy", "clone")
	h.eventually("its taps go", func() bool { return len(h.links()) == 2 })

	// A copy with the names in it says what to do while the first guest runs, and starts when that
	// is off.
	h.virt.Define(h.named("web", "copy"))
	if out, err := h.virt.Try("start", "copy"); err == nil ||
		!strings.Contains(out, "interface web-net0, which is web/net0 (remove <target dev='web-net0'/>") {
		t.Errorf("start copy: %v: %s", err, out)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
	h.virt.Virsh("start", "copy")
	if out, err := h.virt.Try("start", "web"); err == nil ||
		!strings.Contains(out, "interface web-net0, which is copy/net0") {
		t.Errorf("start web: %v: %s", err, out)
	}
	h.virt.Virsh("destroy", "copy")
	h.nothingLeft()
}

// TestLiveCloneMacvtap: a clone of a guest with macvtaps starts with macvtaps of its own beside the
// first guest, also where the kernel's next index has a node in /dev of a macvtap in another netns.
func TestLiveCloneMacvtap(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	h.define("web", "", "")
	h.virt.Virsh("start", "web")
	senders := []net.HardwareAddr{guestMAC(0x99)}
	var specs []nic.Spec
	for i, lower := range []nic.Lower{{Mode: "bridge"}, {Mode: "source", Sources: senders, RxFilter: nic.RxNone}} {
		lower.Kind, lower.Device = vtap.Macvtap, "eth1"
		spec := onBr0("web", fmt.Sprintf("net%d", i))
		spec.Bridge, spec.Persistent, spec.Lower = "", true, &lower
		if i == 0 {
			spec.Queues = 2
		}
		h.attach(spec)
		specs = append(specs, spec)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
	h.clone("web", "clone")
	h.nodesInTheWay(3)
	h.virt.Virsh("start", "clone")
	h.virt.Virsh("start", "web")

	ctx, cancel := testContext()
	defer cancel()
	for guest, device := range map[string]string{"web": "web-", "clone": "macvtap"} {
		details, err := h.Show(ctx, guest)
		if err != nil || len(details) != len(specs) {
			t.Fatalf("%s: %+v, %v", guest, details, err)
		}
		for i, d := range details {
			spec, mac := specs[i], guestMAC(0x41+i)
			if guest == "web" {
				mac = nic.DefaultMAC(guest, spec.NIC)
			}
			if d.ID != spec.NIC || d.State != nic.Up || d.Mode != spec.Lower.Mode || d.MAC != mac.String() ||
				d.HostMAC != mac.String() ||
				!strings.HasPrefix(d.Interface, device) || d.Queues != max(spec.Queues, 1) ||
				d.PID != h.virt.QEMU(guest) || d.Source != "eth1" {
				t.Errorf("%s: %+v", guest, d)
			}
		}
		l, err := h.nl.LinkByName(details[1].Interface)
		if err != nil || fmt.Sprint(l.(*netlink.Macvtap).MACAddrs) != fmt.Sprint(senders) {
			t.Errorf("hears %+v, %v", l, err)
		}
	}
	if c, err := h.Check(ctx); err != nil || c.NICs != 4 || len(c.Differences)+len(c.Notices) != 0 {
		t.Errorf("check %+v, %v", c, err)
	}
	h.virt.Virsh("managedsave", "clone")
	h.virt.Virsh("start", "clone")
	if n := h.nics("clone")["net1"]; n.State != nic.Up || n.Mode != "source" {
		t.Errorf("restored: %+v", n)
	}
	for _, guest := range []string{"web", "clone"} {
		h.virt.Virsh("destroy", guest)
	}
	h.nothingLeft()
}

// nodesInTheWay are macvtaps of another netns at the next indices that the kernel chooses here.
func (h *host) nodesInTheWay(n int) {
	h.Helper()
	h.sh("ip tuntap add probe mode tap")
	probe, err := h.nl.LinkByName("probe")
	if err != nil {
		h.Fatal(err)
	}
	h.sh("ip link del probe")
	script := "exec unshare -n sh -ec 'ip link add eth0 type veth peer name far0;"
	for i := range n {
		script += fmt.Sprintf("ip link add index %d link eth0 name m%d type macvtap;", probe.Attrs().Index+1+i, i)
	}
	h.background(script + " echo there; read end'")
}

// TestLiveCloneByName: where libvirt opens a device by its name, as an older vmnet stored it, a
// clone of it does not start and names the cure.
func TestLiveCloneByName(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	h.define("web", metadata(`<vmnet:nic id="net0" macvtap="eth1"/>`), handed("web-net0", "net0", 8, ""))
	h.virt.Virsh("start", "web")
	if n := h.nics("web")["net0"]; n.State != nic.Up || n.Type != "macvtap" {
		t.Errorf("%+v", n)
	}
	h.clone("web", "clone")
	if out, err := h.virt.Try("start", "clone"); err == nil ||
		!strings.Contains(out, "add <target dev='clone-net0' managed='no'/> to its interface: virsh edit clone") {
		t.Errorf("start: %v: %s", err, out)
	}
	h.virt.Define(strings.Replace(h.virt.Virsh("dumpxml", "--inactive", "clone"), "<target managed='no'/>",
		"<target dev='clone-net0' managed='no'/>", 1))
	h.virt.Virsh("start", "clone")
	if n := h.nics("clone")["net0"]; n.State != nic.Up || n.MAC != guestMAC(0x41).String() {
		t.Errorf("%+v", n)
	}
	h.define("old", metadata(`<vmnet:nic id="net0" mac="`+guestMAC(9).String()+`" bridge="br0"/>`),
		handed("old-net0", "net0", 9, ""))
	h.clone("old", "older")
	out, err := h.virt.Try("start", "older")
	if err == nil ||
		!strings.Contains(out,
			"remove <target managed='no'/> from its interface, and libvirt makes the tap: virsh edit older") {
		t.Errorf("start: %v: %s", err, out)
	}
	h.virt.Define(strings.Replace(h.virt.Virsh("dumpxml", "--inactive", "older"), "<target managed='no'/>", "", 1))
	h.virt.Virsh("start", "older")
	if n := h.nics("older")["net0"]; n.State != "forwarding" || n.MAC != guestMAC(0x41).String() {
		t.Errorf("%+v", n)
	}
	for _, guest := range []string{"web", "clone", "older"} {
		h.virt.Virsh("destroy", guest)
	}
	h.nothingLeft()
}

// TestLiveSaveAttached: a guest comes back with the NICs that it was given while it ran, however it
// was saved.
func TestLiveSaveAttached(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	h.define("web", "", "")
	h.virt.Virsh("start", "web")
	isolated, macvtapped, stored := onBr0("web", "net0"), onBr0("web", "net1"), onBr0("web", "net2")
	isolated.Port, isolated.Queues = brport.Settings{Isolated: true}, 2
	macvtapped.Bridge, macvtapped.Lower = "", &nic.Lower{Kind: vtap.Macvtap, Device: "eth1", Mode: "private"}
	stored.Persistent = true
	before := map[string]nic.NIC{}
	for _, spec := range []nic.Spec{isolated, macvtapped, stored} {
		before[spec.NIC] = h.attach(spec)
	}
	image := h.dir() + "/image"
	back := func(how string) {
		t.Helper()
		for id, was := range before {
			was.PID = h.virt.QEMU("web")
			h.hasNIC(was)
			if t.Failed() {
				t.Fatalf("%s: %s", how, id)
			}
		}
	}
	back("attached")
	h.virt.Virsh("managedsave", "web")
	h.nothingLeft()
	h.virt.Virsh("start", "web")
	back("managedsave")
	h.virt.Virsh("save", "web", image)
	h.nothingLeft()
	h.virt.Virsh("restore", image)
	back("save")
	h.virt.Virsh("snapshot-create-as", "web", "first", "--memspec", image+"2,snapshot=external")
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
	h.virt.Virsh("restore", image+"2")
	back("snapshot")
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
	h.virt.Virsh("start", "web") // with what is stored alone
	if nics := h.nics("web"); len(nics) != 1 || nics["net2"].State != "forwarding" {
		t.Errorf("%+v", nics)
	}
	if out := h.virt.Virsh("metadata", "web", declared.Namespace); strings.Contains(out, "net0") {
		t.Errorf("declared: %s", out)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}
