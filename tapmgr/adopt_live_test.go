package tapmgr_test

import (
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

// libvirtTap is a tap as libvirt makes it for a guest with that MAC: up, on no bridge, and held by
// the process that has made it.
func (h *host) libvirtTap(name string, mac net.HardwareAddr) *rtnl.Link {
	h.Helper()
	tap, err := tun.Create(h.ns, name, false)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = tap.Close() })
	l, err := h.nl.Link(name)
	if err == nil {
		err = h.nl.Set(l.Index, rtnl.MAC(stablemac.HostMAC(mac)), rtnl.Up(true))
	}
	if err != nil {
		h.Fatal(err)
	}
	return l
}

// TestAdopt: a tap that libvirt has made becomes ours as it is asked for, once; nobody else's
// does.
func TestAdopt(t *testing.T) {
	h := newUserHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 1, 1}
	spec := nic.Spec{
		Target: nic.Target{VM: "clone"}, NIC: "net0", Bridge: "br0", Device: "vnet0",
		MAC: mac, Queues: 1, Vhost: nic.VhostOff,
		Port: brport.Settings{Isolated: true},
	}
	ctx := h.context(20 * time.Second)
	if _, err := h.Host().Adopt(ctx, spec); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before libvirt has made it: %v", err)
	}
	if err := h.Host().Expect(ctx, spec); err != nil {
		t.Error(err)
	}
	l := h.libvirtTap("vnet0", mac)
	if err := h.Host().Expect(ctx, spec); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "remove <target dev='vnet0'/>") {
		t.Errorf("its name is taken: %v", err)
	}
	for range 2 {
		if _, err := h.Host().Adopt(ctx, spec); err != nil {
			t.Fatal(err)
		}
		all, err := h.List("clone")
		if err != nil || len(all) != 1 || all[0].Interface != "vnet0" || all[0].Port != "isolated" ||
			all[0].Source != "br0" || all[0].Via != nic.ViaLibvirt {
			t.Errorf("listed %+v, %v", all, err)
		}
	}
	if now, err := h.nl.LinkByIndex(l.Index); err != nil || !now.Up || now.Master == 0 {
		t.Errorf("%+v, %v", now, err)
	}

	other := spec
	other.VM, other.Device, other.MAC = "other", "tap1", net.HardwareAddr{0x52, 0x54, 0, 0, 1, 2}
	h.libvirtTap("tap1", mac)
	h.libvirtTap("tap2", other.MAC)
	elsewhere, err := h.nl.Link("tap2")
	if err != nil {
		t.Fatal(err)
	}
	br1, err := bridges.Get(h.nl, "br1")
	if err == nil {
		err = bridges.AddPort(h.nl, br1, elsewhere, brport.Settings{})
	}
	if err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]string{
		"tap1":  "not the tap that libvirt makes for MAC 52:54:00:00:01:02",
		"tap2":  "somebody has made tap2 a port of br1",
		"vnet0": "which is clone/net0",
		"br1":   "not the tap that libvirt makes",
	} {
		other.Device = device
		if _, err := h.Host().Adopt(ctx, other); !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", device, err, want)
		}
	}
	if all, err := h.List("other"); err != nil || len(all) != 0 {
		t.Errorf("listed %+v, %v", all, err)
	}
}
