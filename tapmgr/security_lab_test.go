package tapmgr_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vmnet/bridge/portsec"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
)

// TestLabSecurityOfIPVtaps: the guest of an ipvtap sends from the addresses by which the kernel
// delivers, and from no others.
func TestLabSecurityOfIPVtaps(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	g := h.empty()
	spec := g.lowerSpec("net0", nic.Lower{Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.4/24")}})
	spec.Lower.Kind = vtap.IPVtap
	spec.Security.Checks = portsec.All
	h.attach(spec)
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
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
}
