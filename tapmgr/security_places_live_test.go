package tapmgr_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/internal/nstest"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

// datagram is a packet of UDP, which a host forwards, with a text by which it is known.
func datagram(from, to net.HardwareAddr, src, dst netip.Addr, text string) []byte {
	udp := slices.Concat([]byte{0x30, 0x39, 0, 9, 0, 0, 0, 0}, []byte(text)) // without a checksum
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	ip := slices.Concat([]byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}, src.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(udp)))
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum))
	return slices.Concat(to, from, []byte{8, 0}, ip, udp)
}

// onlyOwn sends a datagram from a guest's own address, another from a forged one and forged ARP,
// and demands that the first alone comes out, and that show counts the others.
func (h *host) onlyOwn(vm string, own net.HardwareAddr, to net.HardwareAddr, ip, dst netip.Addr, out *os.File) {
	h.Helper()
	forged := ip.Next()
	h.drops(vm, datagram(own, to, forged, dst, "forged address"), portsec.SourceIP)
	h.drops(vm, datagram(portsectest.OtherMAC, to, ip, dst, "forged MAC"), portsec.SourceMAC)
	arp := slices.Concat(bytes.Repeat([]byte{0xff}, 6), own, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, own,
		forged.AsSlice(), make([]byte, 6), dst.AsSlice())
	h.drops(vm, arp, portsec.ForgedARP)
	s := h.senderOf(vm)
	defer s.close()
	buf := make([]byte, 4096)
	nstest.Eventually(h, 30*time.Second, "the guest's own datagram comes out", func() bool {
		s.send(datagram(own, to, ip, dst, "its own address"))
		if err := out.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			h.Fatal(err)
		}
		for {
			n, err := out.Read(buf)
			if err != nil {
				return false
			}
			if bytes.Contains(buf[:n], []byte("forged")) {
				h.Errorf("%q comes out", buf[:n])
			}
			if bytes.Contains(buf[:n], []byte("its own address")) {
				return true
			}
		}
	})
	if got := h.check(); len(got) != 0 {
		h.Errorf("check: %+v", got)
	}
}

// TestLiveSecurityOfRouted: what a routed guest forges does not reach the host, which forwards the
// rest to the LAN. It can be turned off and on.
func TestLiveSecurityOfRouted(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.liveLAN()
	g := h.empty()
	spec := routedSpec(g.name, "net0", routedAddr)
	spec.Security.Checks = portsec.All
	n := h.attach(spec)
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		t.Fatal(err)
	}
	ip, lan := netip.MustParseAddr(routedAddr), netip.MustParseAddr(lanMachine)
	h.onlyOwn(g.name, mac, stablemac.HostMAC(mac), ip, lan, h.hearFar())
	for _, checks := range []portsec.Checks{0, portsec.All} {
		if _, err := h.set(g, func(s *nic.Spec) { s.Security.Checks = checks }); err != nil {
			t.Fatal(err)
		}
		if got := h.check(); len(got) != 0 {
			t.Errorf("checks %s: check finds %+v", checks, got)
		}
	}
	h.onlyOwn(g.name, mac, stablemac.HostMAC(mac), ip, lan, h.hearFar())
}

// TestLiveSecurityOfNetworks: what a guest of a network forges does not come out of its bridge.
func TestLiveSecurityOfNetworks(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.labNet()
	g, other := h.empty(), h.empty()
	spec := g.inLab("net0", "10.66.0.20")
	spec.Security.Checks = portsec.All
	mac, err := net.ParseMAC(h.attach(spec).MAC)
	if err != nil {
		t.Fatal(err)
	}
	h.ip("link", "add", "port0", "up", "master", "lab", "type", "veth", "peer", "name", "far1")
	h.ip("link", "set", "far1", "up")
	ip, dst := netip.MustParseAddr("10.66.0.20"), netip.MustParseAddr("10.66.0.99")
	out := nstest.PacketSocket(t, h.ns, h.link("far1").Index)
	h.onlyOwn(g.name, mac, portsectest.VictimMAC, ip, dst, out) // whom nobody knows, so it is flooded
	h.attach(other.inLab("net0"))
	if got := h.check(); len(got) != 0 {
		t.Errorf("check beside a guest without: %+v", got)
	}
}
