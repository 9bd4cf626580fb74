package announce

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// TestFrames compares frames with bytes written out by the RFCs, and the advertisement's
// checksum with the one that another implementation computes.
func TestFrames(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	for _, tc := range []struct{ ip, want string }{
		{"192.0.2.7", "ffffffffffff525400000001" + "0806" + "0001080006040001" +
			"525400000001c0000207" + "000000000000c0000207" + "000000000000000000000000000000000000"},
		{"2001:db8::7", "333300000001525400000001" + "86dd" + "6000000000203aff" +
			"20010db8000000000000000000000007" + "ff020000000000000000000000000001" + "8800" + "a8ca" + "20000000" +
			"20010db8000000000000000000000007" + "0201525400000001"},
		{"", "ffffffffffff525400000001" + "8035" + "0001080006040003" +
			"52540000000100000000" + "52540000000100000000" + "000000000000000000000000000000000000"},
	} {
		var ips []netip.Addr
		if tc.ip != "" {
			ips = append(ips, netip.MustParseAddr(tc.ip))
		}
		got := Frames(mac, ips)
		if len(got) != 1 || hex.EncodeToString(got[0]) != tc.want {
			t.Errorf("%q: %x\nwant %s", tc.ip, got, tc.want)
		}
		if tc.ip == "2001:db8::7" { // a receiver's sum over a frame with its checksum is zero
			a := ips[0]
			if sum := checksum(a, netip.MustParseAddr("ff02::1"), got[0][54:]); sum != 0 {
				t.Errorf("checksum of what was sent: %04x", sum)
			}
			if want := readvertised(t, got[0]); !bytes.Equal(got[0], want) {
				t.Errorf("%x\nwant %x", got[0], want)
			}
		}
	}
}

// readvertised decodes a frame with a neighbour advertisement, and encodes it again with the
// lengths and the checksum of gopacket's own computing.
func readvertised(t *testing.T, frame []byte) []byte {
	t.Helper()
	var eth layers.Ethernet
	var ip layers.IPv6
	var icmp layers.ICMPv6
	var advert layers.ICMPv6NeighborAdvertisement
	var kinds []gopacket.LayerType
	p := gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &eth, &ip, &icmp, &advert)
	if err := p.DecodeLayers(frame, &kinds); err != nil || len(kinds) != 4 {
		t.Fatalf("%v, %v", kinds, err)
	}
	icmp.Checksum = 0
	if err := icmp.SetNetworkLayerForChecksum(&ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&eth, &ip, &icmp, &advert)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
