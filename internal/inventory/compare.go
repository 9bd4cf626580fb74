package inventory

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// View is what is read of a plugged NIC for its comparison. compare decides by it alone.
type View struct {
	*Device
	Home    *rtnl.Link       // the bridge or parent device that the NIC belongs on; nil where there is none
	port    *brport.Settings // of a tap that is on home; nil else
	claimed bool             // a userspace switch takes all frames of the parent device
	vhosts  int              // open vhost-net fds of its VMM; -1 where that was not read
	notRuns error            // why its switch, which has lost it, cannot take it back
}

// A property is one thing in which a NIC can differ from what its record says. The table of them
// serves check, reconcile and attach alike, in the order in which differences are mended.
type property struct {
	name  string
	of    func(v *View) bool // whether the NIC has it, and it is known
	want  func(v *View) string
	found func(v *View) string
	mend  func(v *View) Remedy
}

// Remedy is what mends a difference.
type Remedy struct {
	By   nic.Mender
	Cure string // what a person types or does

	// Of MendReconcile: what it takes, and what it then has done, in words.
	Text, Done string
	Fix        Fix
	// Of the others: the finding in words of its own; empty for the usual ones.
	left string
}

// A fix is what mends a difference, as data: whoever mends carries it out.
type Fix struct {
	Kind  FixKind
	Attrs []rtnl.Attr // of FixLink
	Name  string      // of FixAltName
}

type FixKind int

const (
	NotFixed      FixKind = iota // by a person, or by another verb
	FixLink                      // the settings of the link
	FixMTU                       // the device's, to what it should carry
	FixIPv6                      // none of the host's on the device
	FixMode                      // of a macvtap, to that of its record
	FixAltName                   // a further name of the link
	FixBridge                    // it becomes a port of its bridge again
	FixPort                      // the settings of its bridge's port
	FixPortState                 // forwarding
	FixLifetime                  // that of its guest
	FixSwitch                    // it becomes a port of its switch again
	FixSwitchPort                // the settings of its switch's port
)

// Finding is a property that differs.
type Finding struct {
	What, Want, Found string
	Remedy
}

func (f Finding) Difference(dev *Device) nic.Difference {
	return nic.Difference{VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, What: f.What, Want: f.Want, Found: f.Found, MendedBy: f.By, Mend: f.Cure}
}

// String is the finding in one line, with its cure.
func (f Finding) String() string {
	return fmt.Sprintf("%s: want %s, found %s (%s)", f.What, cmp.Or(f.Want, "none"), cmp.Or(f.Found, "none"), f.Cure)
}

// Notice is what a finding is to someone who has not asked for it.
func (f Finding) Notice() string { return cmp.Or(f.left, f.String()) }

// Compare finds what is not as it should be.
func (v *View) Compare() []Finding {
	var all []Finding
	if v.Deleted {
		return []Finding{goneFinding(v)}
	}
	list := properties
	if v.isCutOff() {
		list = properties[:1]
	}
	for _, p := range list {
		if !p.of(v) {
			continue
		}
		if want, found := p.want(v), p.found(v); want != found {
			all = append(all, Finding{p.name, want, found, p.mend(v)})
		}
	}
	return all
}

const ReconcileCommand = "vmnet reconcile"

// byReconcile is a remedy that reconcile has.
func byReconcile(text, done string, f Fix) Remedy {
	return Remedy{By: nic.MendReconcile, Cure: ReconcileCommand, Text: text, Done: done, Fix: f}
}

func byAdmin(format string, args ...any) Remedy {
	return Remedy{By: nic.MendAdmin, Cure: fmt.Sprintf(format, args...)}
}

// byDetach is for what only a NIC that is made again has.
func byDetach(v *View) Remedy {
	return Remedy{By: nic.MendDetach, Cure: v.detachCommand() + "; then attach it again"}
}

func (dev *Device) detachCommand() string {
	return console.Quote([]string{"vmnet", "detach", "--vm", dev.Want.VM, "--nic", dev.Want.NIC})
}

// setting is the remedy of a link's setting.
func setting(v *View, what string, attrs ...rtnl.Attr) Remedy {
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s: %s", v.Name, what), "set: "+what, Fix{Kind: FixLink, Attrs: attrs})
}

func is(text string) func(*View) string { return func(*View) string { return text } }

func (dev *Device) isTap() bool    { return dev.Tun != nil }
func (dev *Device) isIPVtap() bool { return dev.Want.Type == string(vtap.IPVtap) }
func (dev *Device) HasLink() bool  { return !dev.IsSocket() && !dev.Deleted }

// onBridge reports whether the NIC belongs on a bridge of the kernel's.
func (dev *Device) onBridge() bool { return dev.Want.Type == nic.TypeTap && !dev.Want.Switch }

// properties lists them in the order in which they are mended: a port has its settings before it
// goes up.
var properties = []property{
	{"detach", func(v *View) bool { return v.Want.Phase == nic.PhaseDetaching }, is("done"), is("the guest has not let go of it"), mendDetach},
	{"lifetime", (*View).lives, is("that of its guest"), lifetime, mendLifetime},
	{"host MAC", func(v *View) bool { return v.HasLink() }, wantMAC, foundMAC, mendMAC},
	{"MTU", func(v *View) bool { return v.WantMTU() != 0 }, wantMTU, func(v *View) string { return strconv.Itoa(v.MTU) }, mendMTU},
	{"IPv6 of the host", func(v *View) bool { return v.HasLink() }, is("off"), func(v *View) string { return nic.OnOff(v.HostIPv6) }, mendIPv6},
	{"mode", func(v *View) bool { return v.Want.Mode != "" }, func(v *View) string { return v.Want.Mode }, func(v *View) string { return macvlan.ModeName(v.Link) }, mendMode},
	{"rx filter", func(v *View) bool { return v.Want.RxFilter != "" }, func(v *View) string { return v.Want.RxFilter }, func(v *View) string { return RxFilter(v.Device) }, mendRxFilter},
	{"queues", (*View).countsQueues, func(v *View) string { return strconv.Itoa(v.Want.Queues) }, func(v *View) string { return strconv.Itoa(len(v.Holders[0].FDs)) }, byDetach},
	{"vhost", func(v *View) bool { return v.Want.Vhost && v.vhosts >= 0 }, is("on"), func(v *View) string { return nic.OnOff(v.vhosts > 0) }, byDetach},
	{"name", func(v *View) bool { return v.HasLink() && !v.IsPlain() }, wantName, foundName, mendName},
	{"bridge", func(v *View) bool { return v.isTap() }, wantBridge, func(v *View) string { return v.MasterName }, mendBridge},
	{"port", (*View).hasSettings, func(v *View) string { return bridges.Effective(v.Home, v.Want.PortConfig()).String() }, func(v *View) string { return v.port.String() }, mendPort},
	{"VLAN", (*View).needsVLAN, is("one at least"), is(""), mendVLAN},
	{"switch", (*View).knowsSeat, func(v *View) string { return "a port of switch " + v.Want.Source }, foundSeat, mendSeat},
	{"settings", func(v *View) bool { return v.SwitchPort.Port != nil }, func(v *View) string { return settingsText(v.Want.SwitchPortConfig()) }, func(v *View) string { return settingsText(v.SwitchPort.Port.Config) }, mendSettings},
	{"switch port", func(v *View) bool { return v.SwitchPort.Port != nil }, is("no loop"), foundLoop, mendLoop},
	{"link", func(v *View) bool { return v.HasLink() }, is("up"), func(v *View) string { return upDown(v.Up) }, mendLink},
	{"carrier", func(v *View) bool { return v.isTap() && v.Up && !v.IsPlain() }, is("on"), func(v *View) string { return nic.OnOff(v.Carrier) }, mendCarrier},
	{"port state", (*View).hasPortState, is(rtnl.Forwarding.String()), func(v *View) string { return v.Port.State.String() }, mendPortState},
	{"bridge state", func(v *View) bool { return v.onBridge() && v.Home != nil }, is("up"), func(v *View) string { return upDown(v.Home.Up) }, mendHome},
	{"parent device", func(v *View) bool { return !v.onBridge() && v.Home != nil }, is("up"), func(v *View) string { return upDown(v.Home.Up) }, mendHome},
	{"frames of the parent device", func(v *View) bool { return !v.onBridge() && v.Home != nil }, is("its own"), foundClaim, mendClaim},
}

// isCutOff reports whether a forced detach has taken the NIC off the network, and the guest keeps
// the dead device.
func (dev *Device) isCutOff() bool { return dev.Want.Phase == nic.PhaseDetaching && !dev.Up }

func mendDetach(v *View) Remedy {
	return Remedy{By: nic.MendDetach, Cure: v.detachCommand() + " waits for it; so does its restart", left: "the guest has not let go of it yet"}
}

// lives reports whether the NIC is a tap, which should go with its guest: who holds it can make it
// persistent. Of a tap of which only its bridge is known, that is its holder's own affair.
func (v *View) lives() bool {
	return v.isTap() && v.Want.Phase != nic.PhaseDetaching && !v.IsPlain() && len(v.Holders) > 0
}

func lifetime(v *View) string {
	if v.Tun.Persist {
		return "persistent"
	}
	return "that of its guest"
}

func mendLifetime(v *View) Remedy {
	return byReconcile(fmt.Sprintf("TUNSETPERSIST 0 on a copy of QEMU's own fd of %s", v.Name), "made to go with its guest",
		Fix{Kind: FixLifetime})
}

// wantMAC is an address that is no guest's: a bridge keeps frames for its ports' own addresses to
// itself.
func wantMAC(v *View) string {
	if v.IsPlain() {
		return stablemac.HostMAC(v.MAC).String()
	}
	if v.isTap() {
		return stablemac.HostMAC(v.Want.MAC).String()
	}
	return v.Want.MAC.String()
}

// foundMAC is the device's address; where that is its parent's, the parent's counts.
func foundMAC(v *View) string {
	if v.Home != nil && (v.isIPVtap() || v.Want.Mode == "passthru") {
		return v.Home.MAC.String()
	}
	return v.MAC.String()
}

func mendMAC(v *View) Remedy {
	mac, _ := net.ParseMAC(wantMAC(v))
	if v.isIPVtap() {
		r := byDetach(v)
		r.left = fmt.Sprintf("its parent device %s has another address than the guest now: %s", v.Home.Name, r.Cure)
		return r
	}
	return setting(v, "address "+mac.String(), rtnl.MAC(mac))
}

// WantMTU is what the device should carry; 0 where that is not known.
func (v *View) WantMTU() int {
	switch {
	case v.IsSocket(), v.isElsewhere(): // there it might become a bridge's MTU
		return 0
	case v.Want.Switch:
		return v.Want.GuestMTU()
	case v.Home == nil:
		return 0
	}
	return v.Home.MTU
}

func wantMTU(v *View) string { return strconv.Itoa(v.WantMTU()) }

func mendMTU(v *View) Remedy {
	r := setting(v, fmt.Sprintf("mtu %d", v.WantMTU()))
	r.Fix = Fix{Kind: FixMTU}
	return r
}

func mendIPv6(v *View) Remedy {
	r := setting(v, "inet6 addr_gen_mode none")
	r.Fix = Fix{Kind: FixIPv6}
	return r
}

// mendMode: the kernel refuses to change into or out of passthru, and forgets the senders of mode
// source.
func mendMode(v *View) Remedy {
	found := macvlan.ModeName(v.Link)
	if v.Want.Mode == "passthru" || found == "passthru" || v.Want.Mode == "source" {
		return byDetach(v)
	}
	what := "mode " + v.Want.Mode
	return byReconcile(fmt.Sprintf("RTM_NEWLINK %s: %s", v.Name, what), "set: "+what, Fix{Kind: FixMode})
}

func mendRxFilter(v *View) Remedy {
	all := v.Want.RxFilter != nic.RxNone
	return setting(v, "allmulti "+nic.OnOff(all), rtnl.AllMulti(all))
}

// countsQueues reports whether it is known how many the VMM has open.
func (v *View) countsQueues() bool { return len(v.Holders) > 0 && v.HasLink() && !v.IsPlain() }

// A NIC is found by the name that InterfaceName makes, or by an altname.
func wantName(v *View) string { return cmp.Or(v.missingName(), v.Name) }

func foundName(v *View) string { return v.Name }

// missingName is one of its names that the link has neither as its name nor as an altname; empty
// for none. The full name is an altname only beside the short one, as Spec.interfaceName has it.
func (dev *Device) missingName() string {
	name, altName := nic.InterfaceName(dev.Want.VM, dev.Want.NIC)
	switch {
	case !dev.isNamed(name):
		return name
	case dev.Name == name && altName != "" && !dev.isNamed(altName):
		return altName
	}
	return ""
}

func (dev *Device) isNamed(name string) bool {
	return dev.Name == name || slices.Contains(dev.AltNames, name)
}

func mendName(v *View) Remedy {
	name := v.missingName()
	return byReconcile(fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", v.Name, name), "given the altname "+name, Fix{Kind: FixAltName, Name: name})
}

func wantBridge(v *View) string {
	if v.Want.Switch {
		return ""
	}
	return v.Want.Source
}

func mendBridge(v *View) Remedy {
	free := console.Quote([]string{"ip", "link", "set", v.Name, "nomaster"}) + " && vmnet reconcile"
	switch {
	case v.MasterName != "" && v.Want.Switch:
		r := byAdmin("%s", free)
		r.left = fmt.Sprintf("it is a port of %s, and belongs on switch %s", v.MasterName, v.Want.Source)
		return r
	case v.MasterName != "":
		r := byAdmin("%s", free)
		r.left = fmt.Sprintf("it is a port of %s, not of %s", v.MasterName, v.Want.Source)
		return r
	case v.Home == nil:
		return byAdmin("vmnet bridge create %s && vmnet reconcile", v.Want.Source)
	}
	br := v.Home
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s: mtu %d, master %s, up", v.Name, br.MTU, br.Name), "put back on "+br.Name, Fix{Kind: FixBridge})
}

// hasSettings reports whether the port's settings are known, and those of its bridge. A tap of
// which only its bridge is known may have some that somebody else has given it, unless the policy
// has.
func (v *View) hasSettings() bool { return v.port != nil && (!v.IsPlain() || v.Want.Port != "") }

func mendPort(v *View) Remedy {
	want := v.Want.PortConfig()
	text := fmt.Sprintf("port set to %s, it was %s", OrNothing(bridges.Effective(v.Home, want).String()), OrNothing(v.port.String()))
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s, of AF_BRIDGE: %s", v.Name, OrNothing(want.String())), text, Fix{Kind: FixPort})
}

// needsVLAN reports whether the port should be, and is, in no VLAN of a bridge that filters them.
func (v *View) needsVLAN() bool {
	return v.hasSettings() && bridges.NoVLAN(v.Home, v.Want.PortConfig()) && bridges.NoVLAN(v.Home, *v.port)
}

func mendVLAN(v *View) Remedy {
	return Remedy{By: nic.MendDetach, Cure: fmt.Sprintf("%s has no default VLAN, so that nothing passes a port without --vlan: %s; then attach it with --vlan", v.Home.Name, v.detachCommand())}
}

// isElsewhere reports whether somebody has put a tap where it does not belong. There it is left
// alone.
func (v *View) isElsewhere() bool {
	return v.isTap() && v.MasterName != "" && v.MasterName != wantBridge(v)
}

// knowsSeat reports whether the NIC belongs on a switch, of which it is known whether it has the
// NIC.
func (v *View) knowsSeat() bool {
	return v.Want.Switch && v.SwitchPort.Err == nil && v.SwitchPort.Path != "" && !v.isElsewhere()
}

func foundSeat(v *View) string {
	if v.IsDisconnected() {
		return "none: it has ended, or lost it"
	}
	return "a port of switch " + v.Want.Source
}

func mendSeat(v *View) Remedy {
	switch {
	case v.IsSocket():
		return Remedy{By: nic.MendAttach, Cure: cureOfLost, left: fmt.Sprintf("switch %s has lost it, and it leads nowhere (%s)", v.Want.Source, cureOfLost)}
	case v.notRuns != nil:
		r := byAdmin("vmnet reconcile, once the switch runs")
		r.left = v.notRuns.Error()
		return r
	}
	return byReconcile(fmt.Sprintf("switch %s: add-port %s again, which it has lost", v.Want.Source, v.Name), "joined again to switch "+v.Want.Source, Fix{Kind: FixSwitch})
}

// settingsText is a switch's port's settings, for comparison.
func settingsText(cfg vport.Config) string {
	text, err := json.Marshal(cfg)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// mendSettings: a switch's port has its settings from the first, and one by a socket cannot be made
// again.
func mendSettings(v *View) Remedy {
	if v.IsSocket() {
		return byDetach(v)
	}
	return byReconcile(fmt.Sprintf("switch %s: remove-port %s, add-port %s", v.Want.Source, v.SwitchPort.Port.Name, v.Name), "given its port's settings again",
		Fix{Kind: FixSwitchPort})
}

func foundLoop(v *View) string {
	if portState(v.SwitchPort.Port) == nic.Stopped {
		return "stopped: it is part of a loop"
	}
	return "no loop"
}

// mendLoop: the port goes on by itself, once there is no loop any more.
func mendLoop(v *View) Remedy {
	return byAdmin("end the loop behind it (vmnet switch show %s)", v.Want.Source)
}

func mendLink(v *View) Remedy {
	return setting(v, "up", rtnl.Up(true))
}

func mendCarrier(v *View) Remedy { return setting(v, "carrier on", rtnl.Carrier(true)) }

// hasPortState reports whether the state of the bridge's port should be the one that it has without
// STP.
func (v *View) hasPortState() bool {
	return v.port != nil && v.OperUp && v.Home.Up && !v.Home.Bridge.STP
}

func mendPortState(v *View) Remedy {
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s, of AF_BRIDGE: state forwarding", v.Name), "set: forwarding",
		Fix{Kind: FixPortState})
}

func mendHome(v *View) Remedy {
	r := byAdmin("ip link set %s up", v.Home.Name)
	what := "parent device"
	if v.onBridge() {
		what = "bridge"
	}
	r.left = fmt.Sprintf("%s %s is down, nothing passes it (%s)", what, v.Home.Name, r.Cure)
	return r
}

func foundClaim(v *View) string {
	if v.claimed {
		return "taken by a userspace switch"
	}
	return "its own"
}

func mendClaim(v *View) Remedy {
	r := byAdmin("vmnet switch remove-port SWITCH %s (vmnet switch list shows those that run)", v.Home.Name)
	r.left = ClaimedText(v.Home.Name, v.Want.Type)
	return r
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// RxFilter is what a device takes in. Of one that mirrors its guest both can be right: see show.
func RxFilter(dev *Device) string {
	switch {
	case dev.Want.RxFilter == nic.RxMirror:
		return nic.RxMirror
	case dev.AllMulti:
		return nic.RxAllMulti
	}
	return nic.RxNone
}

func OrNothing(s string) string { return cmp.Or(s, "nothing special") }
