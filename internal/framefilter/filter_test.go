package framefilter

import (
	"net"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var (
	mac1 = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	mac2 = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}
	all  = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

func frame(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// frames are examples, by name.
func frames(t testing.TB) map[string][]byte {
	ether := func(dst net.HardwareAddr, kind layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: mac1, DstMAC: dst, EthernetType: kind}
	}
	ip4 := func(proto layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{
			Version: 4, Protocol: proto, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 1, 2}, TTL: 1,
			Options: []layers.IPv4Option{{OptionType: 1}},
		}
	}
	ip6 := func(proto layers.IPProtocol) *layers.IPv6 {
		return &layers.IPv6{Version: 6, NextHeader: proto, SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::2")}
	}
	fragment := ip4(layers.IPProtocolUDP)
	fragment.FragOffset = 100
	return map[string][]byte{
		"arp": frame(t, ether(all, layers.EthernetTypeARP), &layers.ARP{
			AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: mac1, SourceProtAddress: []byte{10, 0, 0, 1}, DstHwAddress: make([]byte, 6),
			DstProtAddress: []byte{10, 0, 1, 2},
		}),
		"tcp": frame(t, ether(mac2, layers.EthernetTypeIPv4), ip4(layers.IPProtocolTCP),
			&layers.TCP{SrcPort: 40000, DstPort: 443}),
		"dns6": frame(t, ether(mac2, layers.EthernetTypeIPv6), ip6(layers.IPProtocolUDP),
			&layers.UDP{SrcPort: 40000, DstPort: 53}),
		"dhcp7": frame(t, ether(all, layers.EthernetTypeDot1Q), &layers.Dot1Q{VLANIdentifier: 7, Type: layers.EthernetTypeIPv4},
			ip4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 68, DstPort: 67}),
		"frag":  frame(t, ether(mac2, layers.EthernetTypeIPv4), fragment, gopacket.Payload{0, 53, 0, 53}),
		"icmp6": frame(t, ether(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, layers.EthernetTypeIPv6), ip6(layers.IPProtocolIPv6HopByHop), gopacket.Payload{58, 0, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0}),
		"cut":   {1, 2, 3},
	}
}

func TestFilters(t *testing.T) {
	examples := frames(t)
	for text, want := range map[string]string{
		"":                               "arp cut dhcp7 dns6 frag icmp6 tcp",
		"arp":                            "arp",
		"ip":                             "dhcp7 frag tcp",
		"ip6":                            "dns6 icmp6",
		"icmp6":                          "icmp6",
		"tcp or arp":                     "arp tcp",
		"udp":                            "dhcp7 dns6 frag",
		"dns":                            "dns6",
		"port 53":                        "dns6",
		"src port 53":                    "",
		"dst port 443 and host 10.0.0.1": "tcp",
		"dhcp":                           "dhcp7",
		"vlan":                           "dhcp7",
		"vlan 7 udp":                     "dhcp7",
		"vlan 8":                         "",
		"host 10.0.1.2":                  "arp dhcp7 frag tcp",
		"src host 10.0.1.2":              "",
		"net fd00::/64":                  "dns6 icmp6",
		"dst net 10.0.1.0/24 tcp":        "tcp",
		"ether host 52:54:00:00:00:02":   "dns6 frag tcp",
		"ether src 52:54:00:00:00:02":    "",
		"broadcast":                      "arp dhcp7",
		"multicast and not broadcast":    "icmp6",
		"not (ip or ip6)":                "arp cut",
		"!(ip||ip6)&&!arp":               "cut",
		"arp or ip and tcp":              "arp tcp",
	} {
		f, err := Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		var got []string
		for _, name := range []string{"arp", "cut", "dhcp7", "dns6", "frag", "icmp6", "tcp"} {
			if f.Match(examples[name]) {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %v, want %s", text, got, want)
		}
	}
}

func TestWrongFilters(t *testing.T) {
	for text, want := range map[string]string{
		"nonsense": `unknown word "nonsense"`, "host x": "want an IP", "net 10.0.0.1": "want a network", "port 65536": "number",
		"(arp": ") is missing", "arp )": `unexpected ")"`, "arp and": "ends too early", "not": "ends too early",
		"vlan 5000": "at most 4095", "ether x": "want a MAC", "src arp": "unknown word",
		strings.Repeat("not ", 1000): "too many", strings.Repeat("x", 5000): "more than 4096",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func FuzzMatch(f *testing.F) {
	for _, b := range frames(f) {
		f.Add("not tcp or port 53", b)
	}
	f.Fuzz(func(_ *testing.T, text string, b []byte) {
		if filter, err := Parse(text); err == nil {
			filter.Match(b)
		}
	})
}
