package doctor

import (
	"os"
	"path/filepath"
	"testing"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/ovs"
	"vmnet/internal/ovstest"
)

// TestLiveOpenVSwitch: ports that are left of devices, and mistakes of a chassis of OVN, are
// findings with their cures.
func TestLiveOpenVSwitch(t *testing.T) {
	m := Machine{NS: nstest.New(t), Root: t.TempDir()}
	if checks := m.openVSwitch(t.Context()); len(checks) > 0 {
		t.Errorf("a machine without it: %+v", checks)
	}
	o := ovstest.New(t, m.NS)
	if err := os.Mkdir(filepath.Join(m.Root, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(o.Dir, filepath.Join(m.Root, "run", "openvswitch")); err != nil {
		t.Fatal(err)
	}
	wants(t, m.openVSwitch(t.Context()), Check{"Open vSwitch", OK, "0 ports, none is left", ""})

	inode, err := m.NS.Inode()
	if err != nil {
		t.Fatal(err)
	}
	owner := ovs.Owner{VM: "P2", NIC: "net0", Place: ovs.Here(inode), Link: 1000}
	o.Vsctl("--no-wait", "add-br", "br-int", "--", "add-port", "br-int", "theirs", "--",
		"add-port", "br-int", "P2-net0", "--", "set", "Port", "P2-net0", `external_ids:vmnet="`+owner.String()+`"`)
	o.Vsctl("--no-wait", "set", "open", ".", "external_ids:ovn-remote=tcp:192.0.2.1:6642",
		"external_ids:ovn-bridge=br-ovn", "external_ids:ovn-encap-ip=127.0.0.1")
	for _, want := range []Check{
		{"Open vSwitch", Warn, "1 port of guests of vmnet that have ended: P2-net0", "vmnet reconcile"},
		{"Open vSwitch", Warn, "1 port of others whose devices have gone: theirs", "reconcile --foreign-rows"},
		{"OVN", Fail, "no system-id", "external_ids:system-id="},
		{"OVN", Fail, "no ovn-encap-type", "geneve"},
		{"OVN", Fail, "there is no bridge br-ovn", "ovn-host"},
	} {
		wants(t, m.openVSwitch(t.Context()), want)
	}

	tap, err := tun.Create(m.NS, "P2-net0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	nl, err := rtnl.Open(m.NS)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	l, err := nl.Link("P2-net0")
	if err == nil {
		const alias = "vmnet vm=P2 nic=net0 type=ovs source=br-ovn mac=52:54:00:00:00:01"
		err = nl.SetQuiet(l.Index, rtnl.Alias(alias+" mtu=9000"))
	}
	lo, loErr := nl.Link("lo")
	if err != nil || loErr != nil {
		t.Fatal(err, loErr)
	}
	if err := nl.Set(lo.Index, rtnl.MTU(1500)); err != nil {
		t.Fatal(err)
	}
	wants(t, m.openVSwitch(t.Context()), Check{"OVN", Warn, "longer frames than its tunnels carry", "--mtu 1442"})
}
