package main

import (
	"testing"

	"vmnet/bridge"
	"vmnet/internal/netns"
	"vmnet/internal/rtnl"
)

// bridges makes bridges in a netns.
func bridges(tb testing.TB, ns *netns.NS, names ...string) {
	tb.Helper()
	c, err := rtnl.Open(ns)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	for _, name := range names {
		if err := bridge.Create(c, bridge.Config{Name: name}); err != nil {
			tb.Fatal(err)
		}
	}
}
