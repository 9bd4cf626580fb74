// Package roster is what guests' NICs and networks know of each other. The kernel has all of it:
// the alias of a bridge names its network, and those of the bridge's ports are the records of the
// NICs that belong to the network. Nothing here runs a program or changes anything.
package roster

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
)

// NetworkOf returns the network whose bridge a link is; empty for any other link. The bridge has
// the network's name.
func NetworkOf(l *rtnl.Link) string {
	rest, ok := strings.CutPrefix(l.Alias, alias.Prefix)
	if !ok || l.Bridge == nil {
		return ""
	}
	for field := range strings.SplitSeq(rest, " ") {
		key, value, err := alias.Field(field)
		if err == nil && key == config.KeyNetwork && value == l.Name {
			return value
		}
	}
	return ""
}

// Bridge returns the bridge of a network that was applied. That there is none is an error that
// matches fs.ErrNotExist with errors.Is; dir has the files of the networks that are known.
func Bridge(nl *rtnl.Conn, dir config.Dir, name string) (*rtnl.Link, error) {
	if err := config.CheckName(name); err != nil {
		return nil, err
	}
	l, err := nl.Link(name)
	switch {
	case err == nil && NetworkOf(l) == name:
		return l, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("network %s: %w", name, err)
	case err == nil && l.Name == name: // not an altname
		return nil, fmt.Errorf("network %s: there is a device of that name, and it is not a network's "+
			"(ip link show %[1]s)", name)
	}
	known, err := Names(nl, dir)
	switch {
	case err != nil:
		return nil, err
	case slices.Contains(known, name):
		return nil, missing{fmt.Sprintf("network %s: it is not applied (vmnet network apply %[1]s)", name)}
	case len(known) == 0:
		return nil, missing{fmt.Sprintf("there is no network %s (vmnet network create %[1]s)", name)}
	}
	return nil, missing{fmt.Sprintf("there is no network %s: want %s", name, strings.Join(known, ", "))}
}

// missing is the error for a network that is not there.
type missing struct{ text string }

func (m missing) Error() string      { return m.text }
func (missing) Is(target error) bool { return target == fs.ErrNotExist }

// Names returns the names of all networks, sorted: those that have a file in dir or a bridge.
func Names(nl *rtnl.Conn, dir config.Dir) ([]string, error) {
	names, err := dir.Names()
	if err != nil {
		return nil, err
	}
	links, err := nl.Links("bridge", 0)
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	for _, l := range links {
		if name := NetworkOf(l); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
