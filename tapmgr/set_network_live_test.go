package tapmgr_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	netconfig "vmnet/internal/network/config"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// TestLiveSetNetwork moves a guest that is paused to a network, where it asks for addresses, and
// away from it. The network's server gives the guest its address before the change ends; its
// neighbours learn at once who has the addresses; what is bound to the NIC is named when it leaves.
func TestLiveSetNetwork(t *testing.T) {
	h := newHost(t)
	l := h.labNet()
	g := h.empty()
	n := h.attach(g.spec("net0"))
	p := h.peer("lab")
	// Neighbours have other addresses in their tables. The kernel ignores answers for a second
	// (locktime in arp(7)).
	own := []string{"10.66.0.20", "fd66:1:2:3::20"}
	h.setSysctl("net/ipv4/neigh/lab/locktime", "0")
	h.setSysctl("net/ipv6/neigh/lab/locktime", "0")
	there := func(s *nic.Spec) {
		s.Bridge, s.Network, s.IP = "", "lab", []netip.Addr{netip.MustParseAddr(own[0]), netip.MustParseAddr(own[1])}
	}
	back := func(s *nic.Spec) { s.Bridge, s.Network, s.IP = "br0", "", nil }
	set := func() error { _, err := h.set(g, there); return err }
	h.try(g, trial{
		there: there, back: back, seat: func() string { return h.seat(n.Interface) }, then: "lab", before: "br0",
	})
	for _, ip := range own {
		h.ip("neigh", "replace", ip, "lladdr", "02:00:00:00:00:99", "dev", "lab", "nud", "stale")
	}
	if err := set(); err != nil {
		t.Fatal(err)
	}
	h.wants("on the network", h.seat(n.Interface), "lab")
	if known := l.knows(); !strings.Contains(known, n.MAC) || !strings.Contains(known, own[0]) {
		t.Errorf("the server knows %s", known)
	}
	mac, ip := [6]byte(macs(t, n.MAC)[0]), netip.MustParseAddr(own[0]).As4()
	p.hears("gratuitous ARP", func(f arpFrame) bool {
		return f.EtherType == 0x0806 && f.Operation == 1 && f.Sender == mac && f.SenderIP == ip && f.TargetIP == ip
	})
	for _, ip := range own {
		nstest.Eventually(t, 20*time.Second, "the host knows who has "+ip, func() bool {
			return strings.Contains(h.neighbours(), ip+" dev lab lladdr "+n.MAC)
		})
	}

	err := l.m.Replace(h.context(30*time.Second), "lab", func(n *netconfig.Network) error {
		n.Forwards = []netconfig.Forward{
			{Protocol: "tcp", First: 8080, Last: 8080, Guest: own[0], Port: 80},
			{Protocol: "tcp", First: 8081, Last: 8081, Guest: "10.66.0.30", Port: 80},
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	res, err := h.set(g, back)
	notices := strings.Join(res.Notices, "\n")
	if err != nil || !strings.Contains(notices, "vmnet forward remove lab tcp:8080") ||
		strings.Contains(notices, "8081") || !strings.Contains(notices, "renew the lease") {
		t.Errorf("%v, notices %s", err, notices)
	}
	nstest.Eventually(t, 20*time.Second, "the server forgets the guest", func() bool { return l.knows() == "" })
	h.wants("on the bridge", h.seat(n.Interface), "br0")
}

// neighbours returns what ip neigh shows.
func (h *host) neighbours() (text string) {
	h.Helper()
	err := h.ns.Do(func() error {
		out, err := exec.Command("ip", "neigh", "show").CombinedOutput()
		text = string(out)
		return err
	})
	if err != nil {
		h.Fatal(err, text)
	}
	return text
}
