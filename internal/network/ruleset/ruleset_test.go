package ruleset

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/network/config"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var update = flag.Bool("update", false, "write the golden files")

// networks are those whose rules are in testdata, by the names of the files.
func networks() map[string]*config.Network {
	subnet := netip.MustParsePrefix("10.66.0.0/24")
	ipv6 := netip.MustParsePrefix("fd66:1:2:3::/64")
	hosts := []config.Host{{Name: "web", IP: netip.MustParseAddr("10.66.0.11")}}
	return map[string]*config.Network{
		"nat":      {Name: "lab", NAT: true, Subnet: subnet, IPv6: ipv6},
		"plain":    {Name: "lab", Subnet: subnet},
		"isolated": {Name: "abcdefghijklmno", NAT: true, Isolated: true, Subnet: subnet, IPv6: ipv6},
		"forwards": {Name: "lab", NAT: true, Subnet: subnet, IPv6: ipv6, Hosts: hosts, Forwards: []config.Forward{
			{Protocol: "tcp", First: 8080, Last: 8080, Guest: "web", Port: 80},
			{Protocol: "udp", First: 5000, Last: 5010, Guest: "10.66.0.12", Listen: netip.MustParseAddr("192.0.2.1")},
			{Protocol: "tcp", First: 8081, Last: 8081, Guest: "fd66:1:2:3::11", Port: 80},
			{Protocol: "tcp", First: 22, Last: 22, Guest: "fd66:1:2:3::11", Listen: netip.MustParseAddr("2001:db8::1")},
		}},
	}
}

func TestText(t *testing.T) {
	for name, n := range networks() {
		got, err := Text(n)
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name+".nft")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || got != string(want) {
			t.Errorf("%s: %v: got\n%swant\n%s", name, err, got, want)
		}
	}
	n := &config.Network{Name: "lab", Forwards: []config.Forward{{Protocol: "tcp", First: 1, Last: 1, Guest: "web"}}}
	if text, err := Text(n); err == nil {
		t.Errorf("a forward to an unknown guest: %s", text)
	}
}

func TestReplaceAndDelete(t *testing.T) {
	n := networks()["nat"]
	text, err := Text(n)
	if err != nil {
		t.Fatal(err)
	}
	const gone = "table inet vmnet-lab\ndelete table inet vmnet-lab\ntable bridge vmnet-lab\ndelete table bridge vmnet-lab\n"
	if got, err := Replace(n, []string{Inet, Bridge}); err != nil || got != gone+text {
		t.Errorf("%s, %v", got, err)
	}
	if got := Delete("lab", []string{Inet, Bridge}); got != gone {
		t.Error(got)
	}
}

// TestLiveNftTakes: the kernel takes the rules, again over what is there, and gives up all of them.
func TestLiveNftTakes(t *testing.T) {
	_, err := tool.Find("nft", "nftables")
	nstest.Require(t, "nft", err == nil, "apt install nftables")
	ns := nstest.New(t)
	for name, n := range networks() {
		if n.Isolated {
			continue // the kernel may lack nft_meta_bridge: see TestLabIsolated
		}
		var there []string
		for range 2 {
			text, err := Replace(n, there)
			if err == nil {
				err = nft.Check(t.Context(), ns, text)
			}
			if err == nil {
				err = nft.Apply(t.Context(), ns, text)
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			there = Families(n)
		}
		listed, err := nft.ListTable(t.Context(), ns, Inet, Table(n.Name))
		if err != nil || !strings.Contains(listed, "chain forwards") {
			t.Errorf("%s: %s, %v", name, listed, err)
		}
		if err := nft.Apply(t.Context(), ns, Delete(n.Name, there)+listed); err != nil {
			t.Errorf("%s: what nft lists is not taken again: %v", name, err)
		}
		if err := nft.Apply(t.Context(), ns, Delete(n.Name, there)); err != nil {
			t.Errorf("%s: delete: %v", name, err)
		}
		rules, err := nft.List(t.Context(), ns)
		if err != nil || rules.Table(nft.TableID{Family: Inet, Name: Table(n.Name)}) != nil {
			t.Errorf("%s: left: %v", name, err)
		}
	}
}
