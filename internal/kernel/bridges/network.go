package bridges

import (
	"fmt"
	"io/fs"
	"strings"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
)

// OfNetwork returns the bridge of a network, whose alias names the network. If there is none, the
// error matches fs.ErrNotExist with errors.Is.
func OfNetwork(c *rtnl.Conn, network string) (*rtnl.Link, error) {
	links, err := c.Links("bridge", 0)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if name, ok := networkIn(l.Alias); ok && name == network {
			return l, nil
		}
	}
	return nil, noNetwork(network)
}

// noNetwork is the error for a network that has no bridge.
type noNetwork string

func (n noNetwork) Error() string {
	return fmt.Sprintf("network %s: it has no bridge here (vmnet network list shows the networks, "+
		"vmnet network apply makes one)", string(n))
}

func (noNetwork) Unwrap() error { return fs.ErrNotExist }

// networkIn returns the network that the alias of a bridge names.
func networkIn(text string) (network string, ok bool) {
	rest, ok := strings.CutPrefix(text, alias.Prefix)
	if !ok {
		return "", false
	}
	for field := range strings.SplitSeq(rest, " ") {
		if key, value, err := alias.Field(field); err == nil && key == "network" {
			return value, value != ""
		}
	}
	return "", false
}
