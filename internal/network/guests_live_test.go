package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/config"
	"vmnet/internal/network/roster"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/traffic"
)

// joins makes a port of the network as the NIC of a guest, as an attach would.
func (x *h) joins(vm, mac string, ip ...string) *guest {
	x.Helper()
	g := x.guest("lab", mac)
	x.belongs(x.guests, vm, mac, ip...)
	return g
}

// belongs gives a port the record of a guest's NIC, and waits until the server knows it.
func (x *h) belongs(port int, vm, mac string, ip ...string) {
	x.Helper()
	r := nic.Record{VM: vm, NIC: "net0", Type: nic.TypeTap, Source: "lab", Network: "lab", Queues: 1}
	r.MAC, _ = config.ParseMAC(mac)
	for _, a := range ip {
		r.IP = append(r.IP, netip.MustParseAddr(a))
	}
	alias, err := r.Encode()
	if err != nil {
		x.Fatal(err)
	}
	x.ip(x.host, "link", "set", portName(port), "alias", alias)
	x.known()
}

// known waits until the server knows the guests that there are.
func (x *h) known() {
	x.Helper()
	br, err := x.m.nl.Link("lab")
	if err != nil {
		x.Fatal(err)
	}
	nstest.Eventually(x, patience, "the server knows its guests", func() bool {
		guests, err := roster.Of(x.m.nl, br)
		port, portErr := x.m.nl.Link("lab-srv")
		if err != nil || portErr != nil {
			return false
		}
		mark, ok := config.ParseServerMark(port.Alias)
		return ok && mark.Guests == roster.Sum(guests)
	})
}

// TestLiveGuestsAreKnown: the server gives a guest the address that its NIC asks for, as soon as it
// is there and until it goes, and knows guests by their names; the first one of a name has it.
func TestLiveGuestsAreKnown(t *testing.T) {
	x := newHost(t)
	before := x.left()
	n := x.create(labNetwork())

	p1 := x.joins("P 1", "52:54:00:00:67:01", "10.66.0.20").lease("other")
	x.wants("own address", p1.ip, "10.66.0.20")
	p2 := x.joins("P2", "52:54:00:00:67:02").lease("")
	for _, c := range []struct{ name, want string }{
		{"p-1", "10.66.0.20"},
		{"P-1.lab.internal", "10.66.0.20"},
		{"P2", p2.ip},
		{"p2.lab.internal", p2.ip},
	} {
		x.resolves(p2.ns, "10.66.0.2", c.name, c.want)
	}
	if got, err := x.lookup(p2.ns, "10.66.0.2", "other"); err == nil {
		t.Errorf("a name that a guest has sent is %q", got)
	}

	second := x.joins("p2", "52:54:00:00:67:03", "10.66.0.20", "10.66.0.21").lease("p2")
	x.wants("second address that is free", second.ip, "10.66.0.21")
	x.resolves(p2.ns, "10.66.0.2", "p2", p2.ip)
	x.resolves(p2.ns, "10.66.0.2", "p2-net0", "10.66.0.21")
	web := x.joins("web", webMAC, "10.66.0.30").lease("")
	x.wants("host of the file", web.ip, "10.66.0.11")
	liar := x.joins("web", "52:54:00:00:67:04", "10.66.0.1", "10.66.0.11", "10.67.0.1").lease("web")
	if slices.Contains([]string{"10.66.0.1", "10.66.0.11", "10.67.0.1"}, liar.ip) {
		t.Errorf("a guest has %s", liar.ip)
	}
	x.resolves(p2.ns, "10.66.0.2", "web", "10.66.0.11")
	x.consistent()

	shown, err := x.m.Show(x.ctx(), "lab")
	if err != nil || len(shown.Guests) != 5 || len(shown.Leases) != 5 {
		t.Fatalf("shown: %+v, %v", shown, err)
	}
	if g := shown.Guests[2]; g.VM != "p2" || g.Name != "p2-net0" || len(g.IP) != 1 || g.Interface != portName(3) {
		t.Errorf("second p2: %+v", g)
	}
	for _, l := range shown.Leases {
		if l.IP.String() == "10.66.0.20" && (l.Guest != "P 1/net0" || l.Name != "p-1") {
			t.Errorf("lease %+v", l)
		}
	}
	if err := x.m.Delete(x.ctx(), "lab", false); err == nil ||
		!strings.Contains(err.Error(), "guests are on it: P 1/net0, P2/net0, p2/net0, web/net0, web/net0") {
		t.Errorf("delete with guests: %v", err)
	}

	// The lease of a guest that has gone keeps nobody from its address.
	for _, port := range []int{1, 3} { // both ask for it
		x.ip(x.host, "link", "del", portName(port))
	}
	x.known()
	if got, err := x.lookup(p2.ns, "10.66.0.2", "p-1"); err == nil {
		t.Errorf("the name of a guest that has gone is %q", got)
	}
	heir := x.joins("heir", "52:54:00:00:67:05", "10.66.0.20").lease("")
	x.wants("address of a guest that has gone", heir.ip, "10.66.0.20")

	// A server that starts later knows them, too.
	if err := x.m.Service.Start(x.ctx(), x.m, n); err != nil {
		t.Fatal(err)
	}
	x.known()
	x.wants("own address, of another server", heir.again(), "10.66.0.20")
	x.resolves(p2.ns, "10.66.0.2", "heir", "10.66.0.20")

	if err := x.m.Delete(x.ctx(), "lab", true); err != nil {
		t.Fatal(err)
	}
	for _, port := range []int{2, 4, 5, 6} {
		x.ip(x.host, "link", "del", portName(port))
	}
	x.wants("left", x.left(), before)
}

// TestLiveLongDatagrams: datagrams that are longer than the MTU pass a network, out by NAT and in
// by a forward, and so do their echoes.
func TestLiveLongDatagrams(t *testing.T) {
	x := newHost(t)
	n := labNetwork()
	n.Forwards = []config.Forward{{Protocol: "udp", First: 9009, Last: 9009, Guest: "web", Port: 9}}
	x.create(n)
	web := x.guest("lab", webMAC).lease("web")
	web.globalIPv6(n.IPv6)
	echo := func(from, to *netns.NS, at, address string) {
		t.Helper()
		var s *traffic.Server
		if err := to.Do(func() (err error) { s, err = traffic.ServeUDP(at); return err }); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		err := from.Do(func() error { _, err := traffic.SendUDP(x.ctx(), address, 3, 9000); return err })
		if err != nil {
			t.Error(err)
		}
	}
	echo(web.ns, x.wan, wanIP+":7", wanIP+":7")
	echo(web.ns, x.wan, "["+wanIP6+"]:7", "["+wanIP6+"]:7")
	echo(x.wan, web.ns, ":9", hostIP+":9009")
}
