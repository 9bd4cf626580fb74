package nft

import (
	"context"
	"testing"

	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

// TestLiveOwnedTable: the other tables are read beside that of a switch.
func TestLiveOwnedTable(t *testing.T) {
	ns := nstest.New(t)
	for _, command := range [][]string{
		{"ip", "link", "add", "v0", "up", "type", "veth", "peer", "name", "v1"},
		{"nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }"},
	} {
		if _, err := tool.Run(t.Context(), ns, "", command...); err != nil {
			t.Fatal(err)
		}
	}
	for _, device := range []string{"v0", "v1"} {
		files, err := endpoint.PacketFiles(ns, device)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			defer f.Close()
		}
	}
	for name, list := range map[string]func(context.Context, *netns.NS) (*Ruleset, error){
		"whole": List, "by tables": listTables,
	} {
		r, err := list(t.Context(), ns)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c := r.Chain(TableID{"inet", "t"}, "f"); c == nil || c.Policy != "drop" || len(r.Table(c.Table)) != 2 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
