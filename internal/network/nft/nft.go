// Package nft runs nft(8), and reads what it prints of a ruleset.
package nft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/tool"
)

// Apply runs the commands of text in ns, all in one transaction or none.
func Apply(ctx context.Context, ns *netns.NS, text string) error {
	_, err := run(ctx, ns, text, "-f", "-")
	return err
}

// Check reports whether the kernel of this machine would take the commands of text in ns.
func Check(ctx context.Context, ns *netns.NS, text string) error {
	_, err := run(ctx, ns, text, "-c", "-f", "-")
	return err
}

// ListTable returns a table as Apply takes it.
func ListTable(ctx context.Context, ns *netns.NS, family, table string) (string, error) {
	out, err := run(ctx, ns, "", "list", "table", family, table)
	return string(out), err
}

// List reads the whole ruleset of ns.
func List(ctx context.Context, ns *netns.NS) (*Ruleset, error) {
	out, err := run(ctx, ns, "", "-j", "list", "ruleset")
	if err != nil {
		return nil, err
	}
	r, err := Parse(out)
	if cut := new(json.SyntaxError); errors.As(err, &cut) {
		r, err = listTables(ctx, ns)
	}
	if err != nil {
		return nil, err
	}
	return r, r.readDevices(func(id TableID) (string, error) { return ListTable(ctx, ns, id.Family, id.Name) })
}

// listTables reads the tables one by one, but for those of which nft prints no JSON: as the flags
// of a table that a process owns, such as those of userspace switches, version 1.0.6 prints
// whatever its memory has, and sometimes ends there.
func listTables(ctx context.Context, ns *netns.NS) (*Ruleset, error) {
	text, err := run(ctx, ns, "", "list", "tables")
	if err != nil {
		return nil, err
	}
	all := &Ruleset{tables: map[TableID][]any{}}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) != 3 || words[0] != "table" {
			continue
		}
		out, err := run(ctx, ns, "", "-j", "list", "table", words[1], words[2])
		if err != nil {
			continue // it has gone
		}
		if one, err := Parse(out); err == nil {
			all.Chains = append(all.Chains, one.Chains...)
			maps.Copy(all.tables, one.tables)
		}
	}
	return all, nil
}

// run runs nft in ns with that standard input.
func run(ctx context.Context, ns *netns.NS, input string, args ...string) ([]byte, error) {
	program, err := tool.Find("nft", "nftables")
	if err != nil {
		return nil, err
	}
	out, err := tool.Run(ctx, ns, input, append([]string{program}, args...)...)
	if failed := new(tool.Failure); errors.As(err, &failed) {
		return nil, fmt.Errorf("%s: %w: %s", failed.Line, failed.Err, explain(failed.Words))
	}
	return out, err
}

// explain returns the first line of what nft says, with the cure where there is one.
func explain(words string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(words), "\n")
	switch {
	case strings.Contains(line, "Operation not permitted"):
		line += " (needs CAP_NET_ADMIN)"
	case strings.Contains(line, "Operation not supported") && strings.Contains(words, "ibrname"):
		line += " (isolated networks need the kernel's module nft_meta_bridge: modprobe nft_meta_bridge)"
	case strings.Contains(line, "Operation not supported"):
		line += " (the kernel lacks nftables, or a module of it: modprobe nf_tables nft_nat nft_masq nft_fib_inet)"
	case strings.Contains(line, "syntax error"):
		line += " (vmnet needs nftables 1.0 or newer: nft --version)"
	}
	return line
}
