package change

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vmnet/tapmgr/nic"
)

// TestAnnouncement: a guest on a trunk is announced in the VLANs that the port passes. On Open
// vSwitch RARP comes first, by which OVN opens the port.
func TestAnnouncement(t *testing.T) {
	for port, want := range map[string]string{
		"":                  "ARP 192.0.2.7",
		"vlan:10":           "ARP 192.0.2.7",
		"trunk:2-3,7":       "VLAN 2 RARP; VLAN 3 RARP; VLAN 7 RARP",
		"trunk:7;native:10": "ARP 192.0.2.7; VLAN 7 RARP",
	} {
		r, ok := nic.ParseRecord("vmnet vm=P2 nic=net0 type=tap source=br0 ip=192.0.2.7 port=" + port +
			" mac=52:54:00:00:00:01")
		if !ok {
			t.Fatal(port)
		}
		var got []string
		for _, frame := range announcement(r) {
			got = append(got, textOf(frame))
		}
		if text := strings.Join(got, "; "); text != want {
			t.Errorf("%s: %s, want %s", port, text, want)
		}
		if got = nil; port != "" {
			continue
		}
		r.Type = nic.TypeOVS
		for _, frame := range announcement(r) {
			got = append(got, textOf(frame))
		}
		if text := strings.Join(got, "; "); text != "RARP; "+want {
			t.Errorf("on Open vSwitch: %s", text)
		}
	}
	r, _ := nic.ParseRecord("vmnet vm=P2 nic=net0 type=tap source=br0 port=trunk:1-4094 mac=52:54:00:00:00:01")
	if n := len(announcement(r)); n != maxVLANs {
		t.Errorf("%d frames in all VLANs", n)
	}
}

func textOf(frame []byte) string {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	kind := eth.EthernetType
	text := ""
	if tag, ok := p.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q); ok {
		text, kind = fmt.Sprintf("VLAN %d ", tag.VLANIdentifier), tag.Type
	}
	if kind == 0x8035 {
		return text + "RARP"
	}
	arp := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	return fmt.Sprintf("%sARP %d.%d.%d.%d", text, arp.SourceProtAddress[0], arp.SourceProtAddress[1],
		arp.SourceProtAddress[2], arp.SourceProtAddress[3])
}
