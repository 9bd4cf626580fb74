package tapmgr_test

import (
	"encoding/binary"
	"os"
	"testing"
	"time"

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

// An arpFrame has an Ethernet header and what follows in ARP (RFC 826) and RARP (RFC 903).
type arpFrame struct {
	Dst, Src           [6]byte
	EtherType          uint16
	Hardware, Protocol uint16
	Sizes              [2]uint8
	Operation          uint16
	Sender             [6]byte
	SenderIP           [4]byte
	Target             [6]byte
	TargetIP           [4]byte
}

// hears waits for a frame that is.
func (p *peer) hears(what string, is func(arpFrame) bool) {
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
		var f arpFrame
		if _, err := binary.Decode(b[:n], binary.BigEndian, &f); err == nil && f.Protocol == 0x0800 && is(f) {
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
	mac := [6]byte(macs(t, n.MAC)[0])
	p.hears("RARP about "+n.MAC, func(f arpFrame) bool {
		return f.Dst == broadcast && f.Src == mac && f.EtherType == 0x8035 && f.Operation == 3 &&
			f.Sender == mac && f.Target == mac
	})
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
