package tapmgr_test

import (
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
)

// TestLabOVN: two chassis forward in the kernel. OVN routes between them, and keeps its port
// security. A NIC has offloads there. Open vSwitch says of the row of a killed guest that it does
// not work, and vmnet removes it.
func TestLabOVN(t *testing.T) {
	lab.Inside(t)
	v := ovstest.NewOVN(t)
	makeLogical(v)
	v.Nbctl("lsp-add", "lan-g1", "g3")
	one, two := newChassis(t, v, true)
	from := one.neighbour(g1)
	two.neighbour(g2)
	p := one.pinging(from, g2.ip)
	p.answered(1)
	p.stop()
	one.ip("addr", "del", g1.ip+"/24", "dev", "near0")
	one.ip("addr", "add", "10.71.0.99/24", "dev", "near0")
	one.ip("route", "replace", "10.0.0.0/8", "via", g1.router)
	p = one.pinging(from, g2.ip)
	nstest.Eventually(t, 30*time.Second, "50 requests are sent", func() bool { return p.sent.Load() > 50 })
	p.mu.Lock()
	got := len(p.got)
	p.mu.Unlock()
	if got > 0 {
		t.Errorf("port security lets another source address pass: %d answers", got)
	}
	v.Nbctl("lsp-set-port-security", "g1")
	p.answered(p.sent.Load())
	p.stop()

	g := &fakeGuest{qmptest.Start(t, qmptest.Config{Name: one.name("P2")}), one.host}
	res, err := g.tryAttach(nic.Spec{
		Target: nic.Target{VM: g.Name}, NIC: "net0", Bridge: "br-int", OVSDB: one.Socket(), IfaceID: "g3",
		Vhost: nic.VhostOff,
	})
	if err == nil {
		err = one.WaitForwarding(one.context(30*time.Second), res.NIC)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !g.tap("net0").Tun.VnetHdr {
		t.Error("the tap has no vnet header")
	}
	one.allForward(1)
	g.Kill()
	tap := g.link("net0")
	one.gone(tap)
	nstest.Eventually(t, 30*time.Second, "Open vSwitch misses the tap", func() bool {
		return strings.Contains(one.Vsctl("get", "Interface", tap, "error"), "No such device")
	})
	actions, err := one.TidyOVS(one.context(20*time.Second), one.Socket()) // as watch does
	if err != nil || len(actions) != 1 || actions[0].Interface != tap {
		t.Errorf("tidy: %+v, %v", actions, err)
	}
	if ports := one.Vsctl("list-ports", "br-int"); strings.Contains(ports, tap) {
		t.Errorf("ports %q", ports)
	}
}
