package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/ovstest"
	"vmnet/tapmgr/nic"
)

// TestLiveOVS: a domain's declared NIC is a port of a bridge of Open vSwitch while the guest runs,
// and no row is left, however it ends.
func TestLiveOVS(t *testing.T) {
	h := installed(t)
	o := ovstest.New(t, h.ns)
	o.StartSwitch()
	o.AddBridge("br-int")
	declared := metadata(fmt.Sprintf(`<vmnet:nic id="net0" bridge="br-int" ovsdb="%s" iface-id="g1" vlan="7"/>`,
		o.Socket()))
	virtio := handed("web-0", "net0", 1, "")
	noRow := func(when string) {
		t.Helper()
		h.nothingLeft()
		h.eventually("no row is left "+when, func() bool {
			return o.Vsctl("--bare", "--columns=name", "list", "Interface") == "br-int"
		})
	}

	h.define("offloads", declared, virtio)
	h.refused("offloads", "completes no offloads as libvirt's virtio NICs have")
	noRow("of a guest that was refused")

	h.define("web", declared, strings.Replace(virtio, "virtio", "e1000e", 1))
	for _, end := range []func(pid int){
		func(int) { h.virt.Virsh("destroy", "web") },
		func(pid int) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		},
	} {
		h.virt.Virsh("start", "web")
		pid := h.virt.QEMU("web")
		h.hasNIC(nic.NIC{
			VM: "web", ID: "net0", Interface: "web-0", Type: nic.TypeOVS, Source: "br-int", Port: "vlan:7",
			Model: "e1000e", IfaceID: "g1", OVSDB: o.Socket(), MAC: guestMAC(1).String(), Queues: 1, Vhost: "off",
			State: "forwarding", MTU: 1500, PID: pid, Via: nic.ViaLibvirt,
		})
		row := o.Vsctl("get", "Interface", "web-0", "error", "external_ids", "--", "get", "Port", "web-0", "tag")
		for _, want := range []string{"[]\n", "iface-id=g1", "attached-mac=\"52:54:00:00:01:01\"", "\n7"} {
			if !strings.Contains(row, want) {
				t.Errorf("its row lacks %q: %s", want, row)
			}
		}
		end(pid)
		noRow("of a guest that has ended")
	}

	h.script("zz", "cat >/dev/null; [ $2 != start ]")
	h.refused("web", "unexpected exit status 1")
	noRow("of a guest that another hook kept from starting")
}
