package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"

	"github.com/vishvananda/netlink"
)

// TestLiveStart: devices are there when libvirt opens them, are plugged, and are gone with the
// guest.
func TestLiveStart(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	h.lower("eth2")
	h.define("web", metadata(
		`<vmnet:nic id="net0" bridge="br0" isolated="yes"/>`,
		`<vmnet:nic id="net1" bridge="br0" no-flood="yes"/>`,
		`<vmnet:nic id="net2" macvtap="eth1"/>`,
		`<vmnet:nic id="net3" macvtap="eth2" mode="passthru" rx-filter="none"/>`,
	), handed("web-0", "net0", 1, "")+handed("web-1", "net1", 2, "<driver queues='2'/>")+handed("web-2", "net2", 3, "")+
		handed("web-3", "net3", 4, ""))
	for range 2 {
		h.virt.Virsh("start", "web")
		pid := h.virt.QEMU("web")
		newNIC := func(id, device string, n int) nic.NIC {
			return nic.NIC{
				VM: "web", ID: id, Interface: device, Type: "tap", Source: "br0", Model: "virtio-net-pci",
				MAC: guestMAC(n).String(), Queues: 1,
				Vhost: "off", State: "forwarding", MTU: 1500, PID: pid, Via: nic.ViaLibvirt,
			}
		}
		isolated, flood, bridged, passthru := newNIC("net0", "web-0", 1), newNIC("net1", "web-1", 2),
			newNIC("net2", "web-2", 3), newNIC("net3", "web-3", 4)
		isolated.Port = "isolated"
		flood.Port, flood.Queues = "noflood", 2
		bridged.Type, bridged.Source, bridged.Mode, bridged.State = "macvtap", "eth1", "bridge", "up"
		passthru.Type, passthru.Source, passthru.Mode, passthru.State = "macvtap", "eth2", "passthru", "up"
		for _, want := range []nic.NIC{isolated, flood, bridged, passthru} {
			h.hasNIC(want)
		}
		if !h.isolated("web-0") || h.isolated("web-1") {
			t.Error("not the ports that were asked for are isolated")
		}
		if shown := h.virt.Virsh("domiflist", "web"); strings.Count(shown, "ethernet") != 4 {
			t.Errorf("virsh shows:\n%s", shown)
		}
		nodes := h.nodes("web-2", "web-3")
		h.virt.Virsh("destroy", "web")
		h.nothingLeft()
		for _, node := range nodes {
			if _, err := os.Lstat(node); err == nil {
				t.Errorf("left: %s", node)
			}
		}
	}
}

// nodes are those of macvtaps, which are there.
func (h *host) nodes(names ...string) (nodes []string) {
	h.Helper()
	for _, name := range names {
		l, err := h.nl.LinkByName(name)
		if err != nil {
			h.Fatal(err)
		}
		node := fmt.Sprintf("/dev/tap%d", l.Attrs().Index)
		if _, err := os.Lstat(node); err != nil {
			h.Error(err)
		}
		nodes = append(nodes, node)
	}
	return nodes
}

// TestLiveMTU: the guest gets the MTU of its XML, not that of the bridge.
func TestLiveMTU(t *testing.T) {
	h := installed(t)
	h.sh("ip link set br0 mtu 9000")
	h.define("web", metadata(`<vmnet:nic id="net0" bridge="br0"/>`, `<vmnet:nic id="net1" bridge="br0"/>`),
		handed("web-0", "net0", 1, "")+handed("web-1", "net1", 2, "<mtu size='4000'/>"))
	h.virt.Virsh("start", "web")
	nics := h.nics("web")
	if nics["net0"].MTU != 1500 || nics["net1"].MTU != 4000 {
		t.Errorf("the guest's MTUs are %d and %d bytes", nics["net0"].MTU, nics["net1"].MTU)
	}
	for _, name := range h.links() {
		if l, err := h.nl.LinkByName(name); err != nil || l.Attrs().MTU != 9000 {
			t.Errorf("%s has %+v, %v", name, l, err)
		}
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
	h.define("big", metadata(`<vmnet:nic id="net0" bridge="br0"/>`), handed("web-0", "net0", 1, "<mtu size='9001'/>"))
	h.refused("big", "MTU 9001: br0 carries at most 9000 bytes")
}

// TestLivePortOfLibvirt: the tap that libvirt makes has its settings before there is a QEMU, and
// gets them back.
func TestLivePortOfLibvirt(t *testing.T) {
	h := installed(t)
	h.script("zz",
		`[ $2 != start ] || for p in /sys/class/net/br0/brif/*; do echo ${p##*/} $(cat $p/isolated) >>$DIR/seen; done; cat >/dev/null`)
	h.define("web", metadata(`<vmnet:nic mac="`+guestMAC(2).String()+`" isolated="yes"/>`), onBridge(1)+onBridge(2))
	h.virt.Virsh("start", "web")
	seen, _ := os.ReadFile(filepath.Join(h.dir(), "seen"))
	links := h.links()
	slices.Sort(links)
	if len(links) != 2 || string(seen) != links[0]+" 0\n"+links[1]+" 1\n" {
		t.Fatalf("links %v; before there was a QEMU:\n%s", links, seen)
	}
	if h.isolated(links[0]) || !h.isolated(links[1]) {
		t.Error("not the port that was asked for is isolated")
	}

	// The port is changed, and libvirtd is restarted.
	l, err := h.nl.LinkByName(links[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.nl.LinkSetIsolated(l, false); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.eventually("it is isolated again", func() bool { return h.isolated(links[1]) })
	if state := h.virt.Virsh("domstate", "web"); state != "running" {
		t.Errorf("it is %s", state)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}

// TestLiveNetwork: libvirt's taps on a network's bridge are the same, by alias too.
func TestLiveNetwork(t *testing.T) {
	h := installed(t)
	file := filepath.Join(h.dir(), "network.xml")
	if err := os.WriteFile(file,
		[]byte(`<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>`), 0o600); err != nil {
		t.Fatal(err)
	}
	h.virt.Virsh("net-create", file)
	h.define("web", metadata(`<vmnet:nic id="net0" isolated="yes" no-flood="yes"/>`),
		`<interface type='network'><source network='lan'/><model type='virtio'/><alias name='ua-vmnet-net0'/></interface>`)
	h.virt.Virsh("start", "web")
	links := h.links()
	if len(links) != 1 || !h.isolated(links[0]) {
		t.Errorf("links %v are not isolated", links)
	}
	if nics := h.nics("web"); len(nics) != 0 {
		t.Errorf("libvirt's taps are taken for vmnet's: %+v", nics)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}

// restart restarts libvirtd, and waits until its guests are reconnected.
func (h *host) restart() {
	h.Helper()
	old := h.virt.PID()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		h.Fatal(err)
	}
	h.eventually("libvirtd ends", func() bool { _, err := os.Stat(fmt.Sprintf("/proc/%d", old)); return err != nil })
	h.virt.Await()
}

// TestLiveNobodyElsesGuest: guests without declared NICs start as ever, whatever their metadata
// says.
func TestLiveNobodyElsesGuest(t *testing.T) {
	h := installed(t)
	h.define("plain", "", onBridge(1))
	h.define("none", metadata(), onBridge(2))
	h.define("other",
		`<o:nics xmlns:o="urn:other"><o:nic wrong="x"/></o:nics><t:note xmlns:t="urn:t">urn:vmnet:nics:1</t:note>`,
		onBridge(3))
	for _, name := range []string{"plain", "none", "other"} {
		h.virt.Virsh("start", name)
		h.virt.Virsh("destroy", name)
	}
	h.nothingLeft()
}

// TestLiveManyNICs starts a guest with as many NICs as its machine has slots for.
func TestLiveManyNICs(t *testing.T) {
	h := installed(t)
	var nics []string
	interfaces := ""
	for i := range 28 {
		id := fmt.Sprintf("net%d", i)
		nics = append(nics, `<vmnet:nic id="`+id+`" bridge="br0" isolated="yes"/>`)
		interfaces += handed("many-"+id, id, i, "")
	}
	h.define("many", metadata(nics...), interfaces)
	h.virt.Virsh("start", "many")
	got := h.nics("many")
	if len(got) != 28 || got["net27"].State != "forwarding" || !h.isolated("many-net27") {
		t.Errorf("%d NICs, the last is %+v", len(got), got["net27"])
	}
	h.virt.Virsh("destroy", "many")
	h.nothingLeft()
}

// TestLiveTwoAtOnce starts and ends guests at the same time.
func TestLiveTwoAtOnce(t *testing.T) {
	h := installed(t)
	names := []string{"one", "two", "three"}
	for i, name := range names {
		h.define(name, metadata(`<vmnet:nic id="net0" bridge="br0" isolated="yes"/>`,
			`<vmnet:nic mac="`+guestMAC(10+i).String()+`" isolated="yes"/>`),
			handed(name+"-0", "net0", i, "")+onBridge(10+i))
	}
	each := func(verb string) {
		var all sync.WaitGroup
		for _, name := range names {
			all.Go(func() {
				if out, err := h.virt.Try(verb, name); err != nil {
					t.Errorf("%s %s: %v: %s", verb, name, err, out)
				}
			})
		}
		all.Wait()
	}
	each("start")
	links := h.links()
	if len(links) != 6 {
		t.Errorf("links %v", links)
	}
	for _, l := range links {
		if !h.isolated(l) {
			t.Errorf("%s is not isolated", l)
		}
	}
	each("destroy")
	h.nothingLeft()
}

// TestLiveRefused: a guest whose NICs cannot be as declared does not start, says why, and leaves
// nothing.
func TestLiveRefused(t *testing.T) {
	h := installed(t)
	good := `<vmnet:nic id="net0" bridge="br0"/>`
	both := handed("web-0", "net0", 1, "") + handed("web-1", "net1", 2, "")
	for name, test := range map[string]struct{ metadata, interfaces, want string }{
		"attribute": {
			metadata(good, `<vmnet:nic id="net1" bridge="br0" isolatd="yes"/>`), both,
			`vmnet-hook: prepare attribute: nic "net1": attribute "isolatd" is not known`,
		},
		"bridge": {
			metadata(good, `<vmnet:nic id="net1" bridge="br7"/>`), both,
			`vmnet-hook: prepare bridge: prepare bridge/net1: `,
		},
		"vlan": {
			metadata(good, `<vmnet:nic id="net1" bridge="br0" vlan="7"/>`), both,
			`vmnet-hook: prepare vlan: prepare vlan/net1: `,
		},
		"lower": {
			metadata(good, `<vmnet:nic id="net1" macvtap="eth7"/>`), both,
			`vmnet-hook: prepare lower: prepare lower/net1: `,
		},
		"interface": {
			metadata(good, `<vmnet:nic id="net2" bridge="br0"/>`), both,
			`no interface has <alias name='ua-vmnet-net2'/>`,
		},
		"direct": {
			metadata(`<vmnet:nic mac="` + guestMAC(1).String() + `" isolated="yes"/>`),
			`<interface type='user'><mac address='` + guestMAC(1).String() + `'/></interface>`,
			`its interface has type "user"`,
		},
	} {
		h.define(name, test.metadata, test.interfaces)
		h.refused(name, test.want)
	}
}

// TestLiveAbsent: a declared NIC whose interface somebody has taken away does not keep the guest
// from starting.
func TestLiveAbsent(t *testing.T) {
	h := installed(t)
	h.define("web", metadata(`<vmnet:nic id="net0" bridge="br0"/>`, `<vmnet:nic id="net1" bridge="br0"/>`),
		handed("web-0", "net0", 1, "")+handed("web-1", "net1", 2, ""))
	h.virt.Virsh("detach-interface", "web", "ethernet", "--mac", guestMAC(2).String(), "--config")
	h.virt.Virsh("start", "web")
	if nics := h.nics("web"); len(nics) != 1 || nics["net0"].State == "" {
		t.Errorf("NICs %v", nics)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}

// TestLiveStartFails: what was made goes when the guest does not start for another reason.
func TestLiveStartFails(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	nics := metadata(`<vmnet:nic id="net0" bridge="br0"/>`, `<vmnet:nic id="net1" macvtap="eth1"/>`)
	both := handed("web-0", "net0", 1, "") + handed("web-1", "net1", 2, "")
	h.defineWith("kernel", nics, both, "<kernel>/nonexistent</kernel>")
	h.refused("kernel", "/nonexistent")
	h.define("web", nics, both)
	for _, op := range []string{"prepare", "start", "started"} {
		h.script("zz", "cat >/dev/null; [ $2 != "+op+" ]")
		h.refused("web", "unexpected exit status 1")
	}
}

// TestLiveAllPIDsKilled kills the hook at each operation: the guest does not start, or goes on.
func TestLiveAllPIDsKilled(t *testing.T) {
	nstest.RequireFirstPIDNS(t)
	h := installed(t)
	h.lower("eth1")
	h.define("web", metadata(`<vmnet:nic id="net0" bridge="br0"/>`, `<vmnet:nic id="net1" macvtap="eth1"/>`,
		`<vmnet:nic id="net2" bridge="br0"/>`),
		handed("web-0", "net0", 1, "")+handed("web-1", "net1", 2, "")+handed("web-2", "net2",
			3, "<driver queues='2'/>"))
	// killing runs the hook, but kills it after a while at one operation.
	killing := func(op, after string) {
		h.script("vmnet", `[ $2 = `+op+` ] || exec $HOOK "$@"
exec 3<&0; $HOOK "$@" <&3 & sleep `+after+`; kill -9 $! && touch $DIR/killed; wait $!`)
	}
	was := func() bool { return os.Remove(filepath.Join(h.dir(), "killed")) == nil }
	kills := 0
	for _, after := range []string{"0", "0.002", "0.005", "0.01", "0.015", "0.02", "0.03", "0.05"} {
		for _, op := range []string{"prepare", "start", "started"} {
			killing(op, after)
			out, err := h.virt.Try("start", "web")
			if was() {
				kills++
			}
			if err == nil {
				h.virt.Virsh("destroy", "web")
			} else if !strings.Contains(out, "signal 9") && !strings.Contains(out, "exit status 137") {
				t.Errorf("killed at %s after %s s: %s", op, after, out)
			}
			h.nothingLeft()
		}
		killing("release", after)
		h.virt.Virsh("start", "web")
		h.virt.Virsh("destroy", "web")
		if was() {
			kills++
		}
		for _, n := range h.nics("web") {
			if n.State != nic.LeftOver || n.Type != "macvtap" {
				t.Errorf("left: %+v", n)
			}
		}
	}
	t.Logf("killed %d times", kills)
	if kills < 8 {
		t.Errorf("the hook was killed %d times only", kills)
	}
	killing("none", "0")
	h.virt.Virsh("start", "web") // replaces what is left
	if nics := h.nics("web"); len(nics) != 3 || nics["net1"].State != "up" {
		t.Errorf("%+v", nics)
	}
	killing("stopped", "0")
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}

// TestLiveReconnect: whatever goes wrong at reconnect, the guest goes on.
func TestLiveReconnect(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	h.define("web",
		metadata(`<vmnet:nic id="net0" bridge="br0" isolated="yes"/>`, `<vmnet:nic id="net1" macvtap="eth1"/>`),
		handed("web-0", "net0", 1, "")+handed("web-1", "net1", 2, "")+onBridge(3))
	h.virt.Virsh("start", "web")
	pid := h.virt.QEMU("web")
	before := maps.Clone(h.nics("web"))
	for _, metadata := range []string{
		"",
		`<nics><nic mac="` + guestMAC(3).String() + `" isolatd="yes"/></nics>`,
		`<nics><nic mac="` + guestMAC(3).String() + `" vlan="7"/></nics>`, // the bridge does not filter
	} {
		if metadata != "" {
			h.virt.Virsh("metadata", "web", "urn:vmnet:nics:1", "--live", "--key", "vmnet", "--set", metadata)
		}
		h.script("zz", `[ $2 != reconnect ] || touch $DIR/reconnected; cat >/dev/null`)
		h.restart()
		h.eventually("libvirtd reconnects", func() bool {
			return os.Remove(filepath.Join(h.dir(), "reconnected")) == nil
		})
		if state := h.virt.Virsh("domstate", "web"); state != "running" || h.virt.QEMU("web") != pid {
			t.Fatalf("it is %s", state)
		}
		if now := h.nics("web"); !reflect.DeepEqual(now, before) {
			t.Errorf("%+v, before\n%+v", now, before)
		}
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}

// TestLiveSaveRestore: the hook makes the devices again for a restored guest.
func TestLiveSaveRestore(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	h.define("web",
		metadata(`<vmnet:nic id="net0" bridge="br0" isolated="yes"/>`, `<vmnet:nic id="net1" macvtap="eth1"/>`,
			`<vmnet:nic mac="`+guestMAC(3).String()+`" isolated="yes"/>`),
		handed("web-0", "net0", 1, "")+handed("web-1", "net1", 2, "")+onBridge(3))
	h.virt.Virsh("start", "web")
	h.virt.Virsh("managedsave", "web")
	h.nothingLeft()
	h.virt.Virsh("start", "web")
	if nics := h.nics("web"); nics["net0"].State != "forwarding" || nics["net1"].State != "up" {
		t.Errorf("%+v", nics)
	}
	for _, l := range h.links() {
		if !strings.HasPrefix(l, "web-1") && !h.isolated(l) {
			t.Errorf("%s is not isolated", l)
		}
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}

// TestLiveReload: libvirtd calls the first hook after a reload, and any further hook at once.
func TestLiveReload(t *testing.T) {
	h := newHost(t)
	if change := h.link(); !change.Reload {
		t.Errorf("%+v", change)
	}
	h.define("web", metadata(`<vmnet:nic id="net0" bridge="br7"/>`), handed("web-0", "net0", 1, ""))
	if out, err := h.virt.Try("start", "web"); err == nil || strings.Contains(out, "vmnet-hook") {
		t.Errorf("it was called at once, or not needed: %v: %s", err, out)
	}
	h.reload()
	h.refused("web", "vmnet-hook: prepare web:")
	if err := os.Rename(h.etc("qemu.d", "vmnet"), h.etc("qemu.d", "50-vmnet")); err != nil {
		t.Fatal(err)
	}
	h.refused("web", "vmnet-hook: prepare web:")
}

// TestLiveRouted: a declared NIC whose addresses are routed to its tap, which vmnet makes, and
// another whose tap libvirt makes. Nothing is left when the guest ends; a guest with an address of
// the host does not start.
func TestLiveRouted(t *testing.T) {
	h := installed(t)
	h.lower("eth0")
	h.sh("ip addr add 192.0.2.2/24 dev eth0")
	const adopted = `<interface type='ethernet'><mac address='%s'/><model type='virtio'/><alias name='ua-vmnet-net1'/></interface>`
	h.define("web", metadata(`<vmnet:nic id="net0" routed="eth0" ip="192.0.2.11 192.0.2.12"/>`,
		`<vmnet:nic id="net1" routed="eth0" ip="192.0.2.13"/>`),
		handed("web-0", "net0", 1, "")+fmt.Sprintf(adopted, guestMAC(2)))
	h.virt.Virsh("start", "web")
	nics := h.nics("web")
	for id, ips := range map[string]string{"net0": "192.0.2.11,192.0.2.12", "net1": "192.0.2.13"} {
		if n := nics[id]; n.Type != nic.TypeRouted || n.State != nic.Up || nic.FormatIPs(n.IP) != ips {
			t.Errorf("%+v", n)
		}
	}
	entries := func() int {
		all, err := h.nl.NeighProxyList(0, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if n := entries(); n != 3 {
		t.Errorf("%d entries, want 3", n)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
	if n := entries(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
	h.define("bad", metadata(`<vmnet:nic id="net0" routed="eth0" ip="192.0.2.2"/>`), handed("bad-0", "net0", 3, ""))
	h.refused("bad", "the host has 192.0.2.2 itself, on eth0")
}

// TestLiveLinkDown: a NIC whose link is down in the XML, as a set has left it there, starts so.
func TestLiveLinkDown(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	const down = "<link state='down'/>"
	h.define("web", metadata(
		`<vmnet:nic id="net0" bridge="br0"/>`, `<vmnet:nic id="net1" macvtap="eth1"/>`,
		`<vmnet:nic id="net2" bridge="br0"/>`,
	), handed("web-0", "net0", 1, down)+handed("web-1", "net1", 2, down)+handed("web-2", "net2", 3, ""))
	h.virt.Virsh("start", "web")
	for name, up := range map[string]bool{"web-0": false, "web-1": false, "web-2": true} {
		l, err := h.nl.LinkByName(name)
		if err != nil || (l.Attrs().OperState == netlink.OperUp) != up {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if c, err := h.Check(ctx); err != nil || c.NICs != 3 || len(c.Differences) > 0 {
		t.Errorf("check %+v, %v", c, err)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}
