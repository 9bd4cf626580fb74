package watch

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/internal/access/plaintap"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/stablemac"
)

// giveAddress sets a tap's address as a holder of its queue may do without privilege.
func giveAddress(h *host, tap *tun.Tap, mac net.HardwareAddr) {
	h.Helper()
	ifr := struct { // struct ifreq with ifr_hwaddr (netdevice(7))
		name   [unix.IFNAMSIZ]byte
		family uint16
		addr   [14]byte
		_      [8]byte
	}{family: unix.ARPHRD_ETHER}
	copy(ifr.name[:], tap.Name)
	copy(ifr.addr[:], mac)
	if err := unix.IoctlSetInt(int(tap.Queues()[0].Fd()), unix.SIOCSIFHWADDR,
		int(uintptr(unsafe.Pointer(&ifr)))); err != nil {
		h.Fatal(err)
	}
}

// TestLiveAddressIsSetBack: a guest's VMM sets its tap's address to that of another guest; the
// bridge would then keep that guest's frames.
func TestLiveAddressIsSetBack(t *testing.T) {
	h := newHost(t)
	h.watch(nil)
	ours, err := tun.Create(h.ns, "P2-net0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	const alias = "vmnet vm=P2 nic=net0 type=tap source=br0 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1"
	br, err := h.nl.Link("br0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.nl.Link("P2-net0")
	if err == nil {
		err = h.nl.Set(l.Index, rtnl.Alias(alias), rtnl.MAC(stablemac.HostMAC(guestMAC(1))), rtnl.Master(br.Index))
	}
	if err != nil {
		t.Fatal(err)
	}
	plain, err := plaintap.Make(h.ns, h.nl, 1000, br, brport.Settings{}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	foreign, err := tun.Create(h.ns, "tap9", false)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()

	victim := guestMAC(9)
	giveAddress(h, foreign, victim) // whose intended address is unknown
	for _, tap := range []*tun.Tap{ours, plain} {
		giveAddress(h, tap, victim)
		r, _ := h.reported("address set back to fe:54:00:00:00:0", tap.Name)
		if r.Err != nil || !strings.Contains(r.Text, victim.String()) ||
			tap == ours && (r.Guest != "P2" || r.NIC != "net0") {
			t.Errorf("reported %+v", r)
		}
	}
	address := func(name string) string {
		l, err := h.nl.Link(name)
		if err != nil {
			t.Fatal(err)
		}
		return l.MAC.String()
	}
	if got := address("P2-net0"); got != "fe:54:00:00:00:01" {
		t.Errorf("ours has %s", got)
	}
	if got := address(plain.Name); got != "fe:54:00:00:00:09" {
		t.Errorf("the plain one has %s", got)
	}
	if got := address("tap9"); got != victim.String() {
		t.Errorf("somebody else's has %s", got)
	}

	// Repeated changes are reset each time, and reported once.
	for i := range 20 {
		giveAddress(h, ours, guestMAC(byte(20+i)))
		nstest.Eventually(t, patience, fmt.Sprintf("address set back for the time %d", i), func() bool {
			return address("P2-net0") == "fe:54:00:00:00:01"
		})
	}
	h.quiet(2)
}
