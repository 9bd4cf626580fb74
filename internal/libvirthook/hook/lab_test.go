package hook

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/backend"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

// TestLabVLANs: devices that the hook makes, and taps that somebody else has made, get their VLANs.
func TestLabVLANs(t *testing.T) {
	lab.Inside(t)
	ns := nstest.New(t)
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	m, err := backend.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	h, err := bridge.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Create(bridge.Config{Name: "br0", VLANFiltering: true}); err != nil {
		t.Fatal(err)
	}
	br, err := bridges.Get(nl, "br0")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := tun.Create(ns, "vnet0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	l, err := nl.Link("vnet0")
	if err == nil {
		err = nl.Set(l.Index, rtnl.MAC(net.HardwareAddr{0xfe, 0x54, 0, 0, 0, 3}))
	}
	if err == nil {
		err = bridges.AddPort(nl, br, l, brport.Settings{})
	}
	if err != nil {
		t.Fatal(err)
	}
	port := func(name, want string) {
		t.Helper()
		l, err := nl.Link(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bridges.ReadPort(nl, br, l); err != nil || got.String() != want {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	call := Call{Guest: "web", SubOp: "begin", Caller: os.Getpid(), XML: fmt.Sprintf(`<domain type='qemu'><name>web</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid>
<metadata><v:nics xmlns:v="urn:vmnet:nics:1"><v:nic id="net0" bridge="br0" vlan="10" isolated="yes"/><v:nic id="net1" bridge="br0" trunk="2-5" native="7"/><v:nic mac="52:54:00:00:00:03" vlan="20"/></v:nics></metadata>
<devices>%s%s<interface type='bridge'><mac address='52:54:00:00:00:03'/></interface></devices></domain>`, handed(0), handed(1))}
	for _, op := range []string{"prepare", "start"} {
		call.Op = op
		if _, err := call.Run(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	port("web-0", "vlan:10;isolated")
	port("web-1", "trunk:2-5;native:7")
	port("vnet0", "vlan:20")
	call.Op, call.SubOp = "release", "end"
	if _, err := call.Run(ctx, m); err != nil {
		t.Fatal(err)
	}
	if left, _, err := m.NICs(t.Context(), "web"); err != nil || len(left) > 0 {
		t.Errorf("left: %+v, %v", left, err)
	}
}

func handed(n int) string {
	return fmt.Sprintf(
		`<interface type='ethernet'><mac address='52:54:00:00:01:%02x'/><target dev='web-%[1]d' managed='no'/><alias name='ua-vmnet-net%[1]d'/></interface>`,
		n)
}
