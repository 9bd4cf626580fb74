package tapmgr_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
)

// TestLabSecurityOfIPVtaps: the guest of an ipvtap sends from the addresses by which the kernel
// delivers, and from no others. Its rates are in force, and what may come in to it.
func TestLabSecurityOfIPVtaps(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	g := h.empty()
	spec := g.lowerSpec("net0", nic.Lower{Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.4/24")}})
	spec.Lower.Kind = vtap.IPVtap
	spec.Security.Checks, spec.Rates = portsec.All, someRates
	h.attach(spec)
	h.limits("attached", g, someRates)
	far := h.hearFar()
	mac := h.link("eth0").MAC
	ping := func(from byte) []byte { // an empty packet of ICMP, which nobody answers
		return slices.Concat([]byte{2, 0, 0, 0, 0, 1}, mac, []byte{8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0},
			[]byte{10, 8, 0, from, 10, 8, 0, 1}, make([]byte, 26))
	}
	h.drops(g.name, ping(99), portsec.SourceIP)
	s := h.senderOf(g.name)
	defer s.close()
	s.send(ping(4))
	if err := far.SetReadDeadline(time.Now().Add(nstest.Patience(20 * time.Second))); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 2048); ; {
		n, err := far.Read(b)
		if err != nil {
			t.Fatal("the guest's own frame does not arrive: ", err)
		}
		if bytes.Equal(b[:n], ping(99)) {
			t.Error("a frame with another address arrives")
		}
		if bytes.Equal(b[:n], ping(4)) {
			break
		}
	}
	if _, err := h.set(g, func(s *nic.Spec) { s.AllowIn = rulesOf(t, "icmp,from=10.8.0.2") }); err != nil {
		t.Fatal(err)
	}
	asks := func(from byte) []byte {
		return slices.Concat(mac, []byte{2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0},
			[]byte{10, 8, 0, from, 10, 8, 0, 4, 8, 0, 0, 0, 0, 1, 0, 1}, make([]byte, 8))
	}
	h.refused(g.name, far, asks(3), true)
	h.refused(g.name, far, asks(2), false)
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
}

// TestLabSecurityOfOVS: on a bridge of Open vSwitch that forwards in the kernel, what a guest
// forges does not come out, what nobody has asked for does not reach it, and its rates are in
// force.
func TestLabSecurityOfOVS(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	o := ovstest.New(t, h.ns)
	o.UseKernel()
	o.StartSwitch()
	o.Vsctl("--no-wait", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=system")
	nstest.Eventually(t, 2*time.Minute, "the kernel has its module, and the bridge", func() bool {
		_, err := h.nl.Link("br-int")
		return err == nil
	})
	h.UseDatabases(o.Socket())
	h.ip("link", "add", "port0", "up", "type", "veth", "peer", "name", "far1")
	h.ip("link", "set", "far1", "up")
	o.Vsctl("add-port", "br-int", "port0")
	g := h.empty()
	spec := secure(g.spec("net0"))
	spec.Bridge, spec.OVSDB, spec.Rates = "br-int", o.Socket(), someRates
	h.attach(spec)
	far := nstest.PacketSocket(t, h.ns, h.link("far1").Index)
	forged := func() { // the first frames of flows may overtake each other here
		h.onlyOwn(g.name, portsectest.MAC, portsectest.VictimMAC, portsectest.IP4, netip.MustParseAddr("10.7.0.2"), far)
		for _, c := range portsectest.Table() {
			if slices.Contains([]string{"ra", "ra-ext", "ra-frag", "na-spoof", "dhcp-server", "stp-bpdu"}, c.Name) {
				h.drops(g.name, c.Frame, c.Want)
			}
		}
	}
	forged()
	h.limits("attached", g, someRates)
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
	if _, err := h.set(g, func(s *nic.Spec) { s.AllowIn = rulesOf(t, "icmp,from=10.7.0.2") }); err != nil {
		t.Fatal(err)
	}
	h.refused(g.name, far, ping(3, 1), true)
	h.refused(g.name, far, ping(2, 1), false)
	forged()
	o.Vsctl("del-port", "br-int", h.showed(g.name).Interface)
	if got := h.check(); len(got) != 1 || got[0].What != "bridge" {
		t.Errorf("taken off its bridge: check: %+v", got)
	}
	h.settled()
	if got := h.check(); len(got) != 0 {
		t.Errorf("put back: check: %+v", got)
	}
}
