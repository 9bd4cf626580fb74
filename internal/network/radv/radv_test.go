package radv

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var (
	mac    = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	router = netip.MustParseAddr("fe80::1")
	guest  = netip.MustParseAddr("fe80::2")
)

// TestAdvertisement: byte by byte, as RFC 4861 and RFC 8106 draw it.
func TestAdvertisement(t *testing.T) {
	const prefix = "0304 40c0 00015180 00003840 00000000 fd660001000200030000000000000000"
	const dns = "1903 0000 00000708 fd660001000200030000000000000002"
	const domains = "1f03 0000 00000708 036c6162 08696e74 65726e61 6c000000"
	for _, tc := range []struct {
		name   string
		change func(*Params)
		mtu    int
		end    bool
		want   string
	}{
		{
			"all", func(*Params) {}, 1400, false,
			"8600 0000 4000 0708 00000000 00000000 0101 020000000001 0501 0000 00000578" + prefix + dns + domains,
		},
		{
			"no router", func(p *Params) { p.Lifetime = 0 }, 0, false,
			"8600 0000 4000 0000 00000000 00000000 0101 020000000001" + prefix + dns + domains,
		},
		{
			"without names", func(p *Params) { p.DNS, p.Domain = netip.Addr{}, "" }, 0, false,
			"8600 0000 4000 0708 00000000 00000000 0101 020000000001" + prefix,
		},
		{
			"the end", func(p *Params) { p.Domain = "" }, 0, true,
			"8600 0000 4000 0000 00000000 00000000 0101 020000000001" +
				"0304 40c0 00001c20 00000000 00000000 fd660001000200030000000000000000" +
				"1903 0000 00000000 fd660001000200030000000000000002",
		},
	} {
		p := params
		tc.change(&p)
		got := p.advertisement(mac, tc.mtu, tc.end)
		want, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(tc.want), []byte(" "), nil)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v\ngot  %x\nwant %x", tc.name, err, got, want)
		}
	}
	// The longest domain that a network may have fits.
	long := params
	long.Domain = string(bytes.Repeat([]byte("a."), 99)) + "a"
	if b := long.advertisement(mac, 1500, false); len(b)%8 != 0 || len(b) > 500 {
		t.Errorf("%d bytes", len(b))
	}
}

// ask returns a solicitation with these options.
func ask(from netip.Addr, options ...byte) []byte {
	return packet(from, allRouters, append([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}, options...))
}

// TestSolicitation: what RFC 4861, 6.1.1 has routers ignore is ignored.
func TestSolicitation(t *testing.T) {
	source := append([]byte{optionSource, 1}, mac...)
	// changed returns a solicitation with one byte changed, whose checksum is right again.
	changed := func(i int, to byte) []byte {
		b := ask(guest, source...)
		b[i] = to
		b[headerLen+2], b[headerLen+3] = 0, 0
		s := ^sum(b)
		b[headerLen+2], b[headerLen+3] = byte(s>>8), byte(s)
		return b
	}
	wrongSum := ask(guest)
	wrongSum[headerLen+2]++
	for _, tc := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"plain", ask(guest), true},
		{"with its address", ask(guest, source...), true},
		{"before it has an address", ask(netip.IPv6Unspecified()), true},
		{"padded", append(ask(guest), 0, 0, 0), true},
		{"the address of none", ask(netip.IPv6Unspecified(), source...), false},
		{"passed on by a router", changed(7, 254), false},
		{"code", changed(headerLen+1, 1), false},
		{"type", changed(headerLen, typeAdvertisement), false},
		{"an option of no length", ask(guest, 1, 0, 0, 0, 0, 0, 0, 0), false},
		{"an option that is cut off", ask(guest, 1, 2, 0, 0, 0, 0, 0, 0), false},
		{"half an option", ask(guest, 1), false},
		{"checksum", wrongSum, false},
		{"from a group", ask(allHosts), false},
		{"truncated", ask(guest, source...)[:headerLen+10], false},
		{"short", ask(guest)[:headerLen+7], false},
		{"empty", nil, false},
		{"IPv4", changed(0, 0x45), false},
	} {
		if from, ok := solicitation(tc.packet); ok != tc.want {
			t.Errorf("%s: %v, from %s", tc.name, ok, from)
		}
	}
}

func FuzzSolicitation(f *testing.F) {
	f.Add(ask(guest))
	f.Add(ask(guest, optionSource, 1, 2, 0, 0, 0, 0, 1))
	f.Add(packet(router, allHosts, params.advertisement(mac, 1500, false)))
	f.Fuzz(func(t *testing.T, b []byte) {
		was := slices.Clone(b)
		if from, ok := solicitation(b); ok && (from.IsMulticast() || !from.Is6() || b[7] != hopLimit) {
			t.Errorf("from %s", from)
		}
		if !bytes.Equal(b, was) {
			t.Error("it is changed")
		}
	})
}

func TestArgs(t *testing.T) {
	got, err := parse(params.Args())
	if err != nil || got != params {
		t.Errorf("%+v, %v", got, err)
	}
	for _, args := range [][]string{
		nil,
		{"--prefix=x"},
		{"--prefix=10.0.0.0/24", "--dns=::1"},
		{"--prefix=fd00::/64"},
		append(params.Args(), "more"),
		append(params.Args(), "--lifetime=24h"),
		append(params.Args(), "--lifetime=-1s"),
		append(params.Args(), "--dns=10.0.0.1"),
	} {
		if p, err := parse(args); err == nil {
			t.Errorf("%q: %+v", args, p)
		}
	}
}

// TestTimes: the first advertisements follow each other soon, later ones do not; the times
// differ.
func TestTimes(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		s := &sender{sent: initial}
		d := s.next()
		if d < least || d > most {
			t.Errorf("%v", d)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Errorf("%d times", len(seen))
	}
	if d := (&sender{sent: 1}).next(); d != soon {
		t.Errorf("%v after the first", d)
	}
}
