// Package uplink puts a network's bridge on a LAN: by an interface of the host, which becomes a
// port of the bridge, by a VLAN subinterface, or by a VLAN of another bridge. It also moves what
// the host has on that interface to the network's bridge, and back.
package uplink

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
)

// Uplink is what connects a network's bridge to a LAN.
type Uplink struct {
	Network string     // and its bridge
	Name    string     // of the bridge's port
	Port    *rtnl.Link // nil if it is not there yet

	// Of a VLAN subinterface that the network makes:
	VLAN   int        // ID; 0 for none
	Parent *rtnl.Link // the device with the VLANs
	Member *rtnl.Link // the port by which a parent that is a bridge reaches the LAN; nil for none
}

// Own reports whether the port is a subinterface that the network makes and deletes.
func (u *Uplink) Own() bool { return u.VLAN != 0 }

// MarkOf is the beginning of the alias of a subinterface that a network has made.
func MarkOf(network string) string {
	return alias.Prefix + "network=" + alias.Escape(network) + " uplink="
}

// Find finds the device that a network's file names.
func Find(c *rtnl.Conn, network, device string) (*Uplink, error) {
	u := &Uplink{Network: network}
	l, err := c.Link(device)
	switch {
	case err == nil && !strings.HasPrefix(l.Alias, MarkOf(network)):
		u.Name, u.Port = l.Name, l
		return u, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	name, vlan, ok := config.SplitVLAN(device)
	if ok {
		u.Parent, err = c.Link(name)
	}
	if !ok || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("uplink %s: there is no interface %s (ip link shows those that there are): %w",
			device, cmp.Or(name, device), fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	u.VLAN = vlan
	if err := u.throughBridge(c); err != nil {
		return nil, err
	}
	u.Name = subinterface(u.Parent.Name, vlan)
	return u, u.findOwn(c)
}

// throughBridge makes the bridge of which the parent is a port the parent. A subinterface on the
// port itself would take the VLAN's frames away from the bridge (__netif_receive_skb_core).
func (u *Uplink) throughBridge(c *rtnl.Conn) error {
	if u.Parent.Master == 0 {
		return nil
	}
	master, err := c.LinkByIndex(u.Parent.Master)
	if err != nil {
		return fmt.Errorf("uplink %s: read its master: %w", u.Parent.Name, err)
	}
	if master.Bridge == nil {
		return taken(u.Parent, master)
	}
	if _, is := networkOf(master); is {
		return fmt.Errorf("uplink %s: %w: it is the uplink of network %s (attach guests to that)", u.Parent.Name,
			ErrTaken, master.Name)
	}
	u.Member, u.Parent = u.Parent, master
	return nil
}

// networkOf returns the network whose bridge a link is.
func networkOf(l *rtnl.Link) (name string, is bool) {
	rest, ok := strings.CutPrefix(l.Alias, alias.Prefix)
	if !ok || l.Bridge == nil {
		return "", false
	}
	for field := range strings.SplitSeq(rest, " ") {
		if key, value, err := alias.Field(field); err == nil && key == "network" {
			return value, true
		}
	}
	return "", false
}

// findOwn finds the subinterface, which somebody else may have made.
func (u *Uplink) findOwn(c *rtnl.Conn) error {
	l, err := c.Link(u.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case l.VLAN != u.VLAN || l.Lower != u.Parent.Index:
		return fmt.Errorf("uplink %s: %w: there is another device of this name (ip link show %[1]s)", u.Name,
			ErrTaken)
	case !strings.HasPrefix(l.Alias, MarkOf(u.Network)):
		u.VLAN, u.Parent, u.Member = 0, nil, nil // an interface of the host like any other
	}
	u.Port = l
	return nil
}

// subinterface returns the name of a VLAN subinterface.
func subinterface(parent string, vlan int) string {
	const longest, hash = 15, 4
	suffix := "." + strconv.Itoa(vlan)
	if len(parent)+len(suffix) <= longest {
		return parent + suffix
	}
	sum := sha256.Sum256([]byte(parent))
	return parent[:longest-len(suffix)-hash] + hex.EncodeToString(sum[:])[:hash] + suffix
}

// ErrTaken is the error for an interface that something else uses.
var ErrTaken = errors.New("it is in use")

// taken returns the error for a port of another master.
func taken(l, master *rtnl.Link) error {
	owner := strings.TrimSpace(master.Kind + " " + master.Name)
	cure := fmt.Sprintf("ip link set %s nomaster", l.Name)
	switch master.Kind {
	case "bridge":
		cure = fmt.Sprintf("vmnet attach --bridge %s puts guests there; uplink %s.VLAN is one of its VLANs",
			master.Name, l.Name)
	case "bond", "team":
		cure = "write uplink " + master.Name
	case "openvswitch":
		owner = "Open vSwitch"
		cure = fmt.Sprintf("vmnet attach --bridge puts guests there; ovs-vsctl del-port %s", l.Name)
	}
	return fmt.Errorf("uplink %s: %w: it is a port of %s (%s)", l.Name, ErrTaken, owner, cure)
}

// Check returns why the port cannot be one of the network's bridge, or nil. move says that the
// host's addresses move with it.
func (u *Uplink) Check(c *rtnl.Conn, bridge int, move bool) error {
	l := u.Port
	if l == nil {
		return nil
	}
	if l.Master != 0 && l.Master != bridge {
		master, err := c.LinkByIndex(l.Master)
		if err != nil {
			return err
		}
		return taken(l, master)
	}
	switch {
	case l.Bridge != nil:
		return fmt.Errorf("uplink %s: %w: it is a bridge (vmnet attach --bridge %[1]s puts guests there; "+
			"uplink %[1]s.VLAN is one of its VLANs)", l.Name, ErrTaken)
	case l.Name == "lo":
		return fmt.Errorf("uplink lo: it is the host's loopback interface")
	case strings.HasPrefix(l.Alias, alias.Prefix) && !u.Own():
		return fmt.Errorf("uplink %s: %w: it is the NIC of a guest or a device of another network (ip link show %[1]s)",
			l.Name, ErrTaken)
	}
	if move || l.Master == bridge && bridge != 0 {
		return nil
	}
	h, err := c.HostConfig(l)
	if err != nil {
		return err
	}
	if has := h.Addresses(); len(has) > 0 {
		return fmt.Errorf("uplink %s: %w: the host has %s there, which do not work on a port of a bridge "+
			"(--move-address moves them to the bridge)", l.Name, ErrTaken, list(has))
	}
	return nil
}

func list[T fmt.Stringer](all []T) string {
	var texts []string
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}
