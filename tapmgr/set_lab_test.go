package tapmgr_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
)

// vlanPorts are access ports of a bridge, by their VLANs, with what hears there.
type vlanPorts struct {
	*host
	br    string
	sends *sender
	heard map[int]*peer
}

// accessPorts makes an access port of a bridge for each of the VLANs.
func (h *host) accessPorts(br string, vlans ...int) *vlanPorts {
	h.Helper()
	p := &vlanPorts{host: h, br: br, heard: map[int]*peer{}}
	far := nstest.New(h)
	for _, vlan := range vlans {
		port, end := fmt.Sprintf("port%d", vlan), fmt.Sprintf("end%d", vlan)
		if err := h.nl.Create("veth", rtnl.Name(port), rtnl.VethPeer(end, far)); err != nil {
			h.Fatal(err)
		}
		if err := bridges.AddPort(h.nl, h.link(br), h.link(port), brport.Settings{VLAN: vlan}); err != nil {
			h.Fatal(err)
		}
		h.ipIn(far, "link", "set", end, "up")
		nl, err := rtnl.Open(far)
		if err != nil {
			h.Fatal(err)
		}
		l, err := nl.Link(end)
		nl.Close()
		if err != nil {
			h.Fatal(err)
		}
		p.heard[vlan] = &peer{host: h, socket: nstest.PacketSocket(h, far, l.Index)}
	}
	return p
}

// passes demands that a frame of the guest, tagged unless tag is 0, arrives in that VLAN, and there
// without a tag, and that no frame of the guest arrives in the VLAN wrong until then.
func (p *vlanPorts) passes(from []byte, tag, vlan, wrong int) {
	p.Helper()
	frame := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from)
	if tag != 0 {
		frame = append(frame, 0x81, 0, byte(tag>>8), byte(tag))
	}
	frame = append(append(frame, 0x88, 0xb5), make([]byte, 60)...)
	p.sends.send(frame)
	until := time.Now().Add(nstest.Patience(20 * time.Second))
	if !p.heard[vlan].hearsFrom(from, until) {
		p.Errorf("tag %d: the frame does not arrive in VLAN %d", tag, vlan)
	}
	if p.heard[wrong].hearsFrom(from, time.Now()) {
		p.Errorf("tag %d: VLAN %d has a frame of the guest", tag, wrong)
	}
}

// hearsFrom reports whether a frame of the test's own EtherType from an address is heard.
func (p *peer) hearsFrom(mac []byte, until time.Time) bool {
	p.Helper()
	if err := p.socket.SetReadDeadline(until); err != nil {
		p.Fatal(err)
	}
	for b := make([]byte, 2000); ; {
		n, err := p.socket.Read(b)
		if err != nil {
			return false
		}
		if n >= 14 && bytes.Equal(b[6:12], mac) && b[12] == 0x88 && b[13] == 0xb5 {
			return true
		}
	}
}

// TestLabSetVLANs changes the VLANs of a NIC on a bridge that filters them, and moves one there:
// its frames are in the VLANs of the new settings, and in no others.
func TestLabSetVLANs(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1", VLANFiltering: true})
	ports := h.accessPorts("br1", 10, 20, 30)
	g := h.empty()
	n := h.attach(g.spec("net0"))
	mac := macs(t, n.MAC)[0]
	ports.sends = h.senderOf(g.name)
	trunk := []brport.VLANRange{{First: 20, Last: 20}, {First: 30, Last: 30}}
	for _, c := range []struct {
		what             string
		edit             func(*nic.Spec)
		tag, vlan, wrong int
	}{
		{"moved", func(s *nic.Spec) { s.Bridge, s.Port.VLAN = "br1", 10 }, 0, 10, 20},
		{"another VLAN", func(s *nic.Spec) { s.Port.VLAN = 20 }, 0, 20, 10},
		{"a trunk", func(s *nic.Spec) { s.Port.VLAN, s.Port.Trunk = 0, trunk }, 30, 30, 20},
		{"its native VLAN", func(s *nic.Spec) { s.Port.Native = 10 }, 0, 10, 30},
		{"an access port", func(s *nic.Spec) { s.Port = brport.Settings{VLAN: 30} }, 0, 30, 10},
	} {
		if _, err := h.set(g, c.edit); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		ports.passes(mac, c.tag, c.vlan, c.wrong)
		h.wants(c.what, h.seat(n.Interface), "br1")
		set := func() error {
			_, err := h.set(g, func(s *nic.Spec) { s.Port = brport.Settings{VLAN: 10, Isolated: true} })
			return err
		}
		if c.tag == 0 {
			continue
		}
		h.faultAtEach(h.stepNamesOf(set), func() { h.Run = nil }, set)
		ports.passes(mac, c.tag, c.vlan, c.wrong)
	}
	ports.sends.close()
}
