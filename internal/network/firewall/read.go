package firewall

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/nft"
)

// Read reads the rules of ns. It needs CAP_NET_ADMIN and the program nft.
func Read(ctx context.Context, ns *netns.NS) (h Host, err error) {
	if h.Ruleset, err = nft.List(ctx, ns); err != nil {
		return h, err
	}
	if err = nft.Translate(ctx, ns, h.Ruleset); err == nil {
		h.Legacy, err = LegacyTables(ns)
	}
	return h, err
}

// LegacyTables returns the names of the tables of iptables-legacy in ns.
func LegacyTables(ns *netns.NS) (tables []string, err error) {
	err = ns.Do(func() error {
		for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + name)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				continue
			}
			if err != nil {
				return err
			}
			tables = append(tables, strings.Fields(string(text))...)
		}
		return nil
	})
	return tables, err
}
