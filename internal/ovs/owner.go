package ovs

import (
	"fmt"
	"strconv"
	"strings"

	"vmnet/internal/alias"
	"vmnet/internal/stablemac"
)

// ownerKey is the external id of vmnet's ports (external_ids of table Port).
const ownerKey = "vmnet"

// A Place is where devices are: a network namespace, of one boot of a machine. The inode of a
// network namespace says nothing beyond that boot.
type Place struct {
	Machine string // differs between machines
	Boot    string
	Netns   uint64 // inode
}

// Here returns the place of the network namespace with that inode.
func Here(netns uint64) Place {
	return Place{Machine: stablemac.UUID("machine"), Boot: stablemac.Boot(), Netns: netns}
}

// An Owner is what a row says of the device for which it was made.
type Owner struct {
	VM, NIC string
	UID     int // of a tap of which nobody knows the NIC, without VM and NIC: whose it is
	Place
	Link int // interface index of the tap
}

// String returns the owner as the external id has it.
func (o Owner) String() string {
	whose := fmt.Sprintf("vm=%s nic=%s", alias.Escape(o.VM), alias.Escape(o.NIC))
	if o.VM == "" {
		whose = fmt.Sprintf("uid=%d", o.UID)
	}
	return fmt.Sprintf("%s machine=%s boot=%s netns=%d link=%d", whose, o.Machine, o.Boot, o.Netns, o.Link)
}

// Label names the owner in messages.
func (o Owner) Label() string {
	if o.VM == "" {
		return fmt.Sprintf("a guest of uid %d", o.UID)
	}
	return o.VM + "/" + o.NIC
}

// parseOwner reads an external id; nil if vmnet has not written it.
func parseOwner(text string) *Owner {
	var o Owner
	plain := false
	for field := range strings.SplitSeq(text, " ") {
		key, value, err := alias.Field(field)
		switch key {
		case "vm":
			o.VM = value
		case "nic":
			o.NIC = value
		case "uid":
			plain = true
			o.UID, err = strconv.Atoi(value)
		case "machine":
			o.Machine = value
		case "boot":
			o.Boot = value
		case "netns":
			o.Netns, err = strconv.ParseUint(value, 10, 64)
		case "link":
			o.Link, err = strconv.Atoi(value)
		}
		if err != nil {
			return nil
		}
	}
	if plain == (o.VM != "") || plain == (o.NIC != "") || o.Machine == "" || o.Link == 0 {
		return nil
	}
	return &o
}

// IsAbandoned reports whether the port is one that vmnet has not made, for a device that is not
// there and that Open vSwitch does not reach elsewhere. there reports whether a link of a name is
// in the network namespace in which ovs-vswitchd looks for devices. A device that comes back works
// in the kernel's datapath by the same row, so only a person knows that nobody needs it.
func (p *Port) IsAbandoned(there func(name string) bool) bool {
	return p.Owner == nil && p.Type == "" && !there(p.Name) && (p.Error != "" || !p.LinkUp)
}

// IsStale reports whether the device for which vmnet has made the port is certainly gone. links are
// the names of the links in the network namespace here, by interface index. Of another machine or
// network namespace nothing is certain.
func (p *Port) IsStale(here Place, links map[int]string) bool {
	switch o := p.Owner; {
	case o == nil || o.Machine != here.Machine:
		return false
	case o.Boot != here.Boot: // no tap outlives the kernel
		return true
	case o.Netns != here.Netns:
		return false
	default:
		return links[o.Link] != p.Name
	}
}
