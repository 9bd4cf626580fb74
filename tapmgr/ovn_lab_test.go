package tapmgr_test

import (
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/lab"
	"vmnet/testvm/traffic"
)

// TestLabOVN: two chassis forward in the kernel, for a guest and a port without one. OVN gives the
// guest its address, routes between them, and keeps its port security. The guest has offloads, and
// TCP passes. Open vSwitch says of the row of a killed guest that it does not work, and vmnet
// removes it.
func TestLabOVN(t *testing.T) {
	lab.Inside(t)
	v := ovstest.NewOVN(t)
	makeLogical(v)
	one, two := newChassis(t, v, true)
	from := one.neighbour(g1)
	name := two.name("P")
	g := &guest{testvm.StartT(t, testvm.Config{Name: name, Icount: true}), name}
	if got := two.plug(g, g2); !strings.HasPrefix(got, "lease "+g2.ip+" router "+g2.router) {
		t.Errorf("by OVN's DHCP: %s", got)
	}
	tap, _ := nic.InterfaceName(name, "net0")
	l, err := two.nl.Link(tap)
	if err != nil || !l.Tun.VnetHdr {
		t.Errorf("the tap has no vnet header: %+v, %v", l, err)
	}
	p := one.pinging(from, g2.ip)
	p.answered(1)
	p.stop()
	if _, err := g.Guest.TCPServe(two.context(60*time.Second), "0.0.0.0:7"); err != nil {
		t.Fatal(err)
	}
	err = from.Do(func() error {
		_, err := traffic.SendTCP(one.context(60*time.Second), g2.ip+":7", some)
		return err
	})
	if err != nil {
		t.Errorf("TCP across hosts: %v", err)
	}
	two.allForward(1)

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

	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	two.gone(tap)
	nstest.Eventually(t, 30*time.Second, "Open vSwitch misses the tap", func() bool {
		return strings.Contains(two.Vsctl("get", "Interface", tap, "error"), "No such device")
	})
	actions, err := two.TidyOVS(two.context(20*time.Second), two.Socket()) // as watch does
	if err != nil || len(actions) != 1 || actions[0].Interface != tap {
		t.Errorf("tidy: %+v, %v", actions, err)
	}
	if ports := two.Vsctl("list-ports", "br-int"); strings.Contains(ports, tap) {
		t.Errorf("ports %q", ports)
	}
}
