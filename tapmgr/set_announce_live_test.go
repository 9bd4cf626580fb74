package tapmgr_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// A peer receives the frames that reach a port of a bridge.
type peer struct {
	*host
	socket *os.File
}

// peer connects a host to the bridge, on which it hears everything.
func (h *host) peer(br string) *peer {
	h.Helper()
	ns := nstest.New(h)
	err := h.nl.Create("veth", rtnl.Name("port0"), rtnl.VethPeer("peer0", ns))
	if err != nil {
		h.Fatal(err)
	}
	h.ip("link", "set", "port0", "master", br, "up")
	h.ipIn(ns, "link", "set", "peer0", "up")
	nstest.Eventually(h, 20*time.Second, "the peer's link", func() bool { // or it hears nothing
		l, err := h.nl.Link("port0")
		return err == nil && l.OperUp
	})
	return &peer{host: h, socket: nstest.PacketSocket(h, ns, 0)}
}

// hears waits for a frame that is.
func (p *peer) hears(what string, is func(gopacket.Packet) bool) {
	p.Helper()
	if err := p.socket.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		p.Fatal(err)
	}
	b := make([]byte, 2000)
	for {
		n, err := p.socket.Read(b)
		if err != nil {
			p.Fatalf("%s: %v", what, err)
		}
		if is(gopacket.NewPacket(bytes.Clone(b[:n]), layers.LayerTypeEthernet, gopacket.Default)) {
			return
		}
	}
}

// TestLiveSetAnnounces moves a guest that is paused, so that it says nothing itself: what its
// new neighbours hear is what vmnet and QEMU send for it.
func TestLiveSetAnnounces(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	g := h.empty()
	n := h.attach(g.spec("net0"))
	p := h.peer("br1")
	res, err := h.set(g, func(s *nic.Spec) { s.Bridge = "br1" })
	if err != nil || len(res.Notices) > 0 {
		t.Errorf("%+v, %v", res, err)
	}
	mac := macs(t, n.MAC)[0]
	p.hears("RARP about "+n.MAC, func(frame gopacket.Packet) bool {
		eth := frame.LinkLayer().(*layers.Ethernet)
		if !bytes.Equal(eth.SrcMAC, mac) || eth.EthernetType != 0x8035 || !isBroadcast(eth.DstMAC) {
			return false
		}
		var arp layers.ARP // RARP has its form
		err := arp.DecodeFromBytes(eth.Payload, gopacket.NilDecodeFeedback)
		return err == nil && arp.Operation == 3 && bytes.Equal(arp.SourceHwAddress, mac) &&
			bytes.Equal(arp.DstHwAddress, mac)
	})
}

func isBroadcast(mac []byte) bool { return bytes.Equal(mac, bytes.Repeat([]byte{0xff}, 6)) }
