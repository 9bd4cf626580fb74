package netmap

import (
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/cli/output"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nsport"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var update = flag.Bool("update", false, "write the golden files")

// hostile is a name that would break out of each format if it was not escaped.
const hostile = `</svg><script>alert(1)</script>"\ & ' ]]> ` + "\x1b[31m\u202e"

func link(index int, name, kind string, change func(*rtnl.Link)) *rtnl.Link {
	l := &rtnl.Link{Index: index, Name: name, Kind: kind, Up: true, Carrier: true, LowerNS: rtnl.OwnNS}
	if kind == "bridge" {
		l.Bridge = &rtnl.Bridge{}
	}
	if change != nil {
		change(l)
	}
	return l
}

func on(master int) func(*rtnl.Link) { return func(l *rtnl.Link) { l.Master = master } }

// example has one of everything.
func example() Input {
	guest := func(vm, id, kind, source string, state nic.State, addrs ...string) tapmgr.Sighting {
		s := tapmgr.Sighting{NIC: nic.NIC{
			VM: vm, ID: id, Interface: vm + "-" + id, Type: kind, Source: source, State: state,
		}}
		for _, a := range addrs {
			s.Addresses = append(s.Addresses, nic.Address{IP: netip.MustParseAddr(a)})
		}
		return s
	}
	in := Input{
		Links: []*rtnl.Link{
			link(1, "lo", "", nil),
			link(2, "br0", "bridge", func(l *rtnl.Link) { l.Bridge.VLANFiltering, l.Bridge.STP = true, true }),
			link(3, "eth0", "", on(2)),
			link(4, "eth1", "", func(l *rtnl.Link) { l.Carrier = false }),
			link(5, "docker0", "bridge", func(l *rtnl.Link) { l.Up = false }),
			link(6, "veth9", "veth", on(5)),
			link(7, "br0.10", "vlan", func(l *rtnl.Link) { l.Lower, l.VLAN = 2, 10 }),
			link(8, "P2-net0", "tun", on(2)),
			link(9, "tap7", "tun", func(l *rtnl.Link) { l.Master, l.Carrier = 2, false }),
			link(10, "vb0", "veth", on(2)),
			link(11, "P6-net0", "tun", on(5)),
			link(12, "br-int", "openvswitch", func(l *rtnl.Link) { l.Up = false }),
		},
		NICs: []tapmgr.Sighting{
			guest("P2", "net0", nic.TypeTap, "br0", "forwarding", "10.0.0.2", "fe80::2", "fd00::2"),
			guest("P2", "net1", "macvtap", "eth1", nic.NoCarrier),
			guest("P3", "net0", nic.TypeTap, "br1", nic.NoBridge),
			guest("P4", "net0", nic.TypeSocket, "sw0", "forwarding"),
			guest("P5", "net0", nic.TypeRouted, "eth0", nic.Up, "192.0.2.7"),
			guest("P6", "net0", nic.TypeTap, "br0", nic.OtherBridge),
			guest(hostile, "net0", nic.TypeTap, "br0", "forwarding"),
			guest("P7", "net0", nic.TypeOVS, "br-int", nic.Up),
			guest("P7", "net1", nic.TypeOVS, "br-int", nic.PortError),
			{NIC: nic.NIC{
				Interface: "lan0", Type: nic.TypeMacvlan, Source: "eth1", Mode: "host access", State: nic.Up,
			}},
		},
		Peers: []nsport.Link{
			{
				Interface: "vb0", Type: "veth", Source: "br0", Peer: "eth0", State: "up", ID: "b",
				Netns: nsport.Netns{Name: "blue"},
			},
			{
				Interface: "veth9", Type: "veth", Source: "docker0", Peer: "eth0", State: "down",
				Netns: nsport.Netns{Name: hostile},
			},
			{Interface: "P2-net1", Type: "macvtap", Source: "eth1", State: "up", NIC: "P2/net1"},
		},
	}
	in.NICs[0].Port, in.NICs[3].Switch, in.NICs[6].Foreign = "vlan:10;isolated", true, true
	return in
}

func TestGolden(t *testing.T) {
	m := Build(example())
	var json strings.Builder
	if err := output.WriteJSON(&json, m); err != nil {
		t.Fatal(err)
	}
	html, err := m.HTML(hostile, time.Unix(0, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{
		"map.txt": m.Text(80, false, nil), "map.dot": m.DOT(), "map.svg": m.SVG(),
		"map.html": html, "map.json": json.String(),
	} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if diff := cmp.Diff(string(want), got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
}

// TestHostileNames: no name leaves its element, in a parser's view.
func TestHostileNames(t *testing.T) {
	m := Build(example())
	html, err := m.HTML(hostile, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(html, "<script"); n != 1 {
		t.Errorf("the page has %d scripts", n)
	}
	elements := map[string]int{}
	for d := xml.NewDecoder(strings.NewReader(m.SVG())); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok {
			elements[e.Name.Local]++
		}
	}
	if elements["script"] > 0 || elements["svg"] != 1 || elements["line"] < 10 {
		t.Errorf("%v", elements)
	}
	for name, text := range map[string]string{"text": m.Text(80, true, nil), "dot": m.DOT(), "svg": m.SVG()} {
		if strings.ContainsAny(text, "\x1b\u202e") {
			t.Errorf("%s has control characters", name)
		}
	}
}

// TestManyGuests: 500 guests fit on a screen, with their faults.
func TestManyGuests(t *testing.T) {
	var in Input
	in.Links = append(in.Links, link(1, "br0", "bridge", nil))
	for i := range 500 {
		s := tapmgr.Sighting{NIC: nic.NIC{
			VM: fmt.Sprintf("guest-with-a-long-name-%d", i), ID: "net0", Interface: fmt.Sprint("tap", i),
			Type: nic.TypeTap, Source: "br0", State: "forwarding", Port: "vlan:10;isolated;no-learning;forward:lldp",
		}}
		if i%100 == 7 {
			s.State = nic.NoCarrier
		}
		in.NICs = append(in.NICs, s)
	}
	m := Build(in)
	text := m.Text(80, false, nil)
	if lines := strings.Count(text, "\n"); lines != 7 || strings.Count(text, "its parent device has no carrier") != 5 ||
		!strings.Contains(text, "└─    and 495 more, without a fault\n") {
		t.Errorf("%d lines:\n%s", lines, text)
	}
	for l := range strings.Lines(m.Text(80, true, nil)) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(l, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, l)
		}
	}
	if n := strings.Count(m.Text(80, true, nil), "\n"); n != 501 {
		t.Errorf("all: %d lines", n)
	}
	if n := strings.Count(m.SVG(), "<line"); n != 6 {
		t.Errorf("%d lines in the SVG", n)
	}
	html, err := m.HTML("host", time.Unix(0, 0))
	if n := strings.Count(html, "<tr class"); err != nil || n != 500 {
		t.Errorf("%v: %d rows in the page", err, n)
	}
}
