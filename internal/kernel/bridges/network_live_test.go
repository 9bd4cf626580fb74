package bridges_test

import (
	"errors"
	"io/fs"
	"testing"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
)

// A network's bridge is found by its alias, whatever the bridge and other links are called.
func TestLiveOfNetwork(t *testing.T) {
	_, c := open(t)
	for name, alias := range map[string]string{
		"br0": "vmnet network=lab ip_forward=0", "lan": "", "lab": "somebody's network=lab", "br1": "vmnet network=a%20b",
	} {
		if err := c.Create("bridge", rtnl.Name(name)); err != nil {
			t.Fatal(err)
		}
		l, err := c.Link(name)
		if err == nil {
			err = c.Set(l.Index, rtnl.Alias(alias))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for network, want := range map[string]string{"lab": "br0", "a b": "br1", "lan": "", "br0": ""} {
		l, err := bridges.OfNetwork(c, network)
		switch {
		case want == "" && !errors.Is(err, fs.ErrNotExist):
			t.Errorf("network %s: %v, %v", network, l, err)
		case want != "" && (err != nil || l.Name != want):
			t.Errorf("network %s: %v, %v, want %s", network, l, err, want)
		}
	}
}
