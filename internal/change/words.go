package change

import (
	"cmp"
	"fmt"
	"slices"

	"vmnet/internal/cli/console"
	"vmnet/internal/cli/nicflags"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// fixed are what the guest would notice, or the kernel or QEMU cannot change, with the reason.
var fixed = map[string]string{
	"mac": "the guest's driver has read its address when the NIC was plugged",
	"mtu": "the guest learned it when the NIC was plugged: it would not know of a higher one, and with a lower one the host " +
		"would drop what it still sends; only the guest can lower it itself (ip link set DEV mtu N in the guest)",
	"model":      "the guest has a driver for the device that was plugged",
	"queues":     "QEMU opens a NIC's queues when it is plugged",
	"vhost":      "QEMU decides what moves the frames when the NIC is plugged",
	"device-opt": "QEMU sets a device's properties when it is plugged",
	"via":        "QEMU keeps what it was given when the NIC was plugged",
	"routed":     "a routed NIC has no port, and others have no routes",
	"macvtap":    "the kernel ties a macvtap to its parent device for good", // macvlan_changelink ignores IFLA_LINK
	"ipvtap":     "the kernel ties an ipvtap to its parent device for good", // as does ipvlan_nl_changelink
	"ovs":        "a port of Open vSwitch moves to no other bridge",
	"ovsdb":      "a port of Open vSwitch moves to no other database",
	"switch":     "a NIC moves from bridge to bridge, or from switch to switch",
	"source-mac": "the kernel forgets the senders of mode source when they change",
	"nopromisc":  "the kernel decides that when the device is made",
	"flag":       "all ipvtaps of a parent device have one flag",
}

// Refuse returns an error if changes of the NIC with that record cannot be made in place, with the
// reason and the cure.
func Refuse(from nic.Record, changes []nic.Change) error {
	for _, c := range changes {
		why, isFixed := fixed[c.Flag]
		switch {
		case c.To != "" && slices.Contains(nicflags.Places, c.Flag) && c.Flag != kindOf(from) && !isFixed:
			why, isFixed = fixed[kindOf(from)]
		case c.Flag == "switch" && c.To != "" && from.Switch:
			why, isFixed = "its switch has the other end of the guest's socket", from.IsSocket()
		case c.Flag == "link" && from.Type == nic.TypeVhostUser:
			why, isFixed = "QEMU sets the link of a vhost-user NIC up whenever its switch connects", true
		case c.Flag == "mode" && from.Type == string(vtap.IPVtap):
			why, isFixed = "all ipvtaps of a parent device have one mode", true
		case c.Flag == "ip" && (from.Type == nic.TypeRouted || from.Type == string(vtap.IPVtap)):
			why, isFixed = "its addresses are those by which packets find it", true
		}
		if !isFixed {
			continue
		}
		return fmt.Errorf("--%s cannot change from %s to %s while the NIC is plugged: %s (%s; then attach it again)",
			c.Flag, cmp.Or(c.From, "none"), cmp.Or(c.To, "none"), why,
			console.Quote([]string{"vmnet", "detach", "--vm", from.VM, "--nic", from.NIC}))
	}
	return nil
}

// kindOf returns the flag that puts a NIC where it is; for a port of Open vSwitch "ovs", as in
// fixed.
func kindOf(r nic.Record) string {
	switch {
	case r.Switch:
		return "switch"
	case r.Network != "":
		return "network"
	case r.Type == nic.TypeTap:
		return "bridge"
	}
	return r.Type // TypeRouted and those of package vtap are the flags' names
}

// Command returns the command that makes the NIC with that record as spec asks; what spec leaves
// open stays. It is empty if that cannot be done in place.
func Command(from nic.Record, spec nic.Spec) string {
	var asked []nic.Change
	for _, c := range nicflags.Differences(from.Spec(), spec) {
		if c.To != "" {
			asked = append(asked, c)
		}
	}
	if len(asked) == 0 || Refuse(from, asked) != nil {
		return ""
	}
	args := []string{"vmnet", "set", "--vm", from.VM, "--nic", from.NIC}
	for _, w := range nicflags.Words(spec) {
		for _, c := range asked {
			if c.Flag != w.Flag {
				continue
			}
			for _, v := range w.Values {
				if v == "true" {
					args = append(args, "--"+w.Flag)
				} else {
					args = append(args, "--"+w.Flag, v)
				}
			}
		}
	}
	return console.Quote(args)
}
