package doctor

import (
	"os"
	"path/filepath"
	"testing"

	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

// TestLiveNetworks: programs that are missing or too old, a chain of another firewall, and what
// differs are findings with their cures.
func TestLiveNetworks(t *testing.T) {
	nstest.RequireRoot(t)
	_, err := tool.Find("nft", "nftables")
	nstest.Require(t, "nft", err == nil, "apt install nftables")
	m := Machine{NS: nstest.New(t), Networks: filepath.Join(t.TempDir(), "networks.d")}
	wants(t, m.networks(t.Context()), Check{"networks", OK, "0 have a file in ", ""})

	manager := &network.Manager{NS: m.NS, Dir: config.Dir(m.Networks), State: dhcp.DefaultState}
	if err := manager.Open(); err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	n := &config.Network{Name: "lab", NAT: true, Domain: "lab.internal"}
	if err := manager.Create(t.Context(), network.Wanted{Network: n}); err != nil {
		t.Fatal(err)
	}
	wants(t, m.networks(t.Context()), Check{"network lab", OK, "as its file says", ""})

	err = nft.Apply(t.Context(), m.NS, `table ip filter {
		chain DOCKER-USER { }
		chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
		chain INPUT { type filter hook input priority 0; policy drop; }
	}
	delete table inet vmnet-lab`)
	if err != nil {
		t.Fatal(err)
	}
	found := m.networks(t.Context())
	for _, want := range []Check{
		{"network lab", Fail, "rules: want table vmnet-lab, found nothing", "vmnet network apply lab"},
		{"network lab", Fail, "firewall: want nothing that drops its traffic, found ip filter FORWARD of Docker", "iptables -I"},
		{"network lab", Warn, "ip filter INPUT of ", "allow what guests may use"},
	} {
		wants(t, found, want)
	}

	// Another nft, and none.
	dir := t.TempDir()
	script := "#!/bin/sh\necho 'nftables v0.9.8 (E.D.S.)'\n"
	if err := os.WriteFile(filepath.Join(dir, "nft"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	checks, _ := m.nft(t.Context(), true)
	wants(t, checks, Check{"nft", Fail, "nftables v0.9.8 (E.D.S.) is too old", "install nftables 1.0"})
	checks, _ = m.nft(t.Context(), false)
	wants(t, checks, Check{"nft", Warn, "nftables v0.9.8 (E.D.S.) is too old", "install nftables 1.0"})
}
