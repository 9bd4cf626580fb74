package tapmgr_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"vmnet/bridge/brport"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

var (
	foreignMAC = net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3} // of a guest
	foreignTap = net.HardwareAddr{0xfe, 0x54, 0, 1, 2, 3} // of the tap that libvirt makes for it
)

// likeLibvirt puts a tap, which this process holds, on br0 as libvirt does.
func (h *host) likeLibvirt(name string) {
	h.Helper()
	h.persistentTaps(name)
	h.holdTap(name)
	br, err := h.nl.Link("br0")
	if err == nil {
		var l *rtnl.Link
		if l, err = h.nl.Link(name); err == nil {
			err = h.nl.Set(l.Index, rtnl.MAC(foreignTap), rtnl.Master(br.Index), rtnl.Up(true))
		}
	}
	if err != nil {
		h.Fatal(err)
	}
}

func TestLiveForeignLinks(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.likeLibvirt("vnet7")
	h.namedMacvtap("macvtap7")
	h.holdMacvtap("macvtap7")
	h.likeLibvirt("ours")
	h.markOurs("ours")
	h.namedMacvtap("other")
	h.persistentTaps("loose")
	got, err := h.Host().Foreign(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	want := []inventory.ForeignLink{
		{Interface: "vnet7", Type: nic.TypeTap, MAC: foreignTap, Source: "br0", MTU: 1500, State: "forwarding"},
		{Interface: "macvtap7", Type: "macvtap", Source: "eth0", MTU: 1500, State: nic.Down},
	}
	rest := cmpopts.IgnoreFields(inventory.ForeignLink{}, "Index", "Queues", "Link")
	if len(got) == 2 {
		want[1].MAC = got[1].MAC // which the kernel has chosen
	}
	if diff := cmp.Diff(want, got, rest); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	tap, macvtap := got[0], got[1]
	if len(tap.Queues) != 1 || len(macvtap.Queues) != 1 {
		t.Errorf("queues %v and %v, want one each", tap.Queues, macvtap.Queues)
	}
	if !tap.HasGuest(foreignMAC) || tap.HasGuest(foreignTap[:5]) || tap.HasGuest(macvtap.MAC) ||
		!macvtap.HasGuest(macvtap.MAC) || macvtap.HasGuest(foreignMAC) {
		t.Error("a link is attributed to the wrong guest")
	}
	if none, err := h.Host().Foreign(1 << 30); err != nil || len(none) != 0 {
		t.Errorf("of no process: %v, %v", none, err)
	}
}

func TestSetForeignPort(t *testing.T) {
	h := newUserHost(t)
	h.likeLibvirt("vnet7")
	h.ip("link", "set", "vnet7", "type", "bridge_slave", "learning", "off")
	for _, want := range []bool{true, false} {
		changed, err := h.Host().SetForeignPort(os.Getpid(), foreignMAC, brport.Settings{Isolated: true})
		if err != nil || changed != want {
			t.Fatalf("changed is %v, want %v: %v", changed, want, err)
		}
	}
	all, err := h.Host().Foreign(os.Getpid())
	if err != nil || len(all) != 1 || all[0].Port.String() != "isolated;nolearn" {
		t.Errorf("%+v, %v", all, err)
	}
	refused := func(what string, pid int, mac net.HardwareAddr) {
		t.Helper()
		if _, err := h.Host().SetForeignPort(pid, mac, brport.Settings{Isolated: true}); !errors.Is(err,
			fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("another MAC", os.Getpid(), net.HardwareAddr{0x52, 0x54, 0, 1, 2, 4})
	refused("another process", os.Getppid(), foreignMAC)
	h.ip("link", "set", "vnet7", "nomaster")
	refused("on no bridge", os.Getpid(), foreignMAC)
}
