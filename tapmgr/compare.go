package tapmgr

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"

	"vmnet/bridge"
	"vmnet/bridge/vswitch"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/macvtap"
	"vmnet/tapmgr/nic"
)

// view is what is read of a plugged NIC for its comparison. compare decides by it alone.
type view struct {
	*ours
	home    *rtnl.Link         // the bridge or parent device that the NIC belongs on; nil where there is none
	port    *bridge.PortConfig // of a tap that is on home; nil else
	claimed bool               // a userspace switch takes all frames of the parent device
	vhosts  int                // open vhost-net fds of its VMM; -1 where that was not read
	notRuns error              // why its switch, which has lost it, cannot take it back
}

// A property is one thing in which a NIC can differ from what its record says. The table of them serves check,
// reconcile and attach alike, in the order in which differences are mended.
type property struct {
	name  string
	of    func(v *view) bool // whether the NIC has it, and it is known
	want  func(v *view) string
	found func(v *view) string
	mend  func(v *view) remedy
}

// remedy is what mends a difference.
type remedy struct {
	by   nic.Mender
	cure string // what a person types or does

	// Of MendReconcile: what it takes, and what it then has done, in words.
	text, done string
	fix        fix
	// Of the others: the finding in words of its own; empty for the usual ones.
	left string
}

// A fix is what mends a difference, as data: whoever mends carries it out.
type fix struct {
	kind  fixKind
	attrs []rtnl.Attr // of fixLink
	name  string      // of fixAltName
}

type fixKind int

const (
	notFixed      fixKind = iota // by a person, or by another verb
	fixLink                      // the settings of the link
	fixMTU                       // the device's, to what it should carry
	fixIPv6                      // none of the host's on the device
	fixMode                      // of a macvtap, to that of its record
	fixAltName                   // a further name of the link
	fixBridge                    // it becomes a port of its bridge again
	fixPort                      // the settings of its bridge's port
	fixPortState                 // forwarding
	fixLifetime                  // that of its guest
	fixSwitch                    // it becomes a port of its switch again
	fixSwitchPort                // the settings of its switch's port
)

// finding is a property that differs.
type finding struct {
	what, want, found string
	remedy
}

func (f finding) difference(o *ours) nic.Difference {
	return nic.Difference{VM: o.want.VM, NIC: o.want.NIC, Interface: o.Name, What: f.what, Want: f.want, Found: f.found, MendedBy: f.by, Mend: f.cure}
}

// String is the finding in one line, with its cure.
func (f finding) String() string {
	return fmt.Sprintf("%s: want %s, found %s (%s)", f.what, cmp.Or(f.want, "none"), cmp.Or(f.found, "none"), f.cure)
}

// notice is what a finding is to someone who has not asked for it.
func (f finding) notice() string { return cmp.Or(f.left, f.String()) }

// compare finds what is not as it should be.
func (v *view) compare() []finding {
	var all []finding
	if v.gone {
		return []finding{goneFinding(v)}
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
			all = append(all, finding{p.name, want, found, p.mend(v)})
		}
	}
	return all
}

const reconcileCommand = "vmnet reconcile"

// byReconcile is a remedy that reconcile has.
func byReconcile(text, done string, f fix) remedy {
	return remedy{by: nic.MendReconcile, cure: reconcileCommand, text: text, done: done, fix: f}
}

func byAdmin(format string, args ...any) remedy {
	return remedy{by: nic.MendAdmin, cure: fmt.Sprintf(format, args...)}
}

// byDetach is for what only a NIC that is made again has.
func byDetach(v *view) remedy {
	return remedy{by: nic.MendDetach, cure: v.detachCommand() + "; then attach it again"}
}

func (o *ours) detachCommand() string {
	return console.Quote([]string{"vmnet", "detach", "--vm", o.want.VM, "--nic", o.want.NIC})
}

// setting is the remedy of a link's setting.
func setting(v *view, what string, attrs ...rtnl.Attr) remedy {
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s: %s", v.Name, what), "set: "+what, fix{kind: fixLink, attrs: attrs})
}

func is(text string) func(*view) string { return func(*view) string { return text } }

func (o *ours) isTap() bool    { return o.Tun != nil }
func (o *ours) isIPVtap() bool { return o.want.Type == string(macvtap.IPVtap) }
func (o *ours) hasLink() bool  { return !o.isSocket() && !o.gone }

// onBridge reports whether the NIC belongs on a bridge of the kernel's.
func (o *ours) onBridge() bool { return o.want.Type == nic.TypeTap && !o.want.Switch }

// properties lists them in the order in which they are mended: a port has its settings before it goes up.
var properties = []property{
	{"detach", func(v *view) bool { return v.want.Phase == nic.PhaseDetaching }, is("done"), is("the guest has not let go of it"), mendDetach},
	{"lifetime", (*view).lives, is("that of its guest"), lifetime, mendLifetime},
	{"host MAC", func(v *view) bool { return v.hasLink() }, wantMAC, foundMAC, mendMAC},
	{"MTU", func(v *view) bool { return v.wantMTU() != 0 }, wantMTU, func(v *view) string { return strconv.Itoa(v.MTU) }, mendMTU},
	{"IPv6 of the host", func(v *view) bool { return v.hasLink() }, is("off"), func(v *view) string { return nic.OnOff(v.HostIPv6) }, mendIPv6},
	{"mode", func(v *view) bool { return v.want.Mode != "" }, func(v *view) string { return v.want.Mode }, func(v *view) string { return macvtap.ModeName(v.Link) }, mendMode},
	{"rx filter", func(v *view) bool { return v.want.RxFilter != "" }, func(v *view) string { return v.want.RxFilter }, func(v *view) string { return rxFilter(v.ours) }, mendRxFilter},
	{"queues", (*view).countsQueues, func(v *view) string { return strconv.Itoa(v.want.Queues) }, func(v *view) string { return strconv.Itoa(len(v.holders[0].FDs)) }, byDetach},
	{"vhost", func(v *view) bool { return v.want.Vhost && v.vhosts >= 0 }, is("on"), func(v *view) string { return nic.OnOff(v.vhosts > 0) }, byDetach},
	{"name", func(v *view) bool { return v.hasLink() && !v.isPlain() }, wantName, foundName, mendName},
	{"bridge", func(v *view) bool { return v.isTap() }, wantBridge, func(v *view) string { return v.master }, mendBridge},
	{"port", (*view).hasSettings, func(v *view) string { return v.want.PortConfig().On(v.home).String() }, func(v *view) string { return v.port.String() }, mendPort},
	{"VLAN", (*view).needsVLAN, is("one at least"), is(""), mendVLAN},
	{"switch", (*view).knowsSeat, func(v *view) string { return "a port of switch " + v.want.Source }, foundSeat, mendSeat},
	{"settings", func(v *view) bool { return v.seat.port != nil }, func(v *view) string { return settingsText(v.want.SwitchPortConfig()) }, func(v *view) string { return settingsText(v.seat.port.Config) }, mendSettings},
	{"switch port", func(v *view) bool { return v.seat.port != nil }, is("no loop"), foundLoop, mendLoop},
	{"link", func(v *view) bool { return v.hasLink() }, is("up"), func(v *view) string { return upDown(v.Up) }, mendLink},
	{"carrier", func(v *view) bool { return v.isTap() && v.Up && !v.isPlain() }, is("on"), func(v *view) string { return nic.OnOff(v.Carrier) }, mendCarrier},
	{"port state", (*view).hasPortState, is(rtnl.Forwarding.String()), func(v *view) string { return v.Port.State.String() }, mendPortState},
	{"bridge state", func(v *view) bool { return v.onBridge() && v.home != nil }, is("up"), func(v *view) string { return upDown(v.home.Up) }, mendHome},
	{"parent device", func(v *view) bool { return !v.onBridge() && v.home != nil }, is("up"), func(v *view) string { return upDown(v.home.Up) }, mendHome},
	{"frames of the parent device", func(v *view) bool { return !v.onBridge() && v.home != nil }, is("its own"), foundClaim, mendClaim},
}

// isCutOff reports whether a forced detach has taken the NIC off the network, and the guest keeps the dead device.
func (o *ours) isCutOff() bool { return o.want.Phase == nic.PhaseDetaching && !o.Up }

func mendDetach(v *view) remedy {
	return remedy{by: nic.MendDetach, cure: v.detachCommand() + " waits for it; so does its restart", left: "the guest has not let go of it yet"}
}

// lives reports whether the NIC is a tap, which should go with its guest: who holds it can make it persistent.
// Of a tap of which only its bridge is known, that is its holder's own affair.
func (v *view) lives() bool {
	return v.isTap() && v.want.Phase != nic.PhaseDetaching && !v.isPlain() && len(v.holders) > 0
}

func lifetime(v *view) string {
	if v.Tun.Persist {
		return "persistent"
	}
	return "that of its guest"
}

func mendLifetime(v *view) remedy {
	return byReconcile(fmt.Sprintf("TUNSETPERSIST 0 on a copy of QEMU's own fd of %s", v.Name), "made to go with its guest",
		fix{kind: fixLifetime})
}

// wantMAC is an address that is no guest's: a bridge keeps frames for its ports' own addresses to itself.
func wantMAC(v *view) string {
	if v.isPlain() {
		return stablemac.HostMAC(v.MAC).String()
	}
	if v.isTap() {
		return stablemac.HostMAC(v.want.MAC).String()
	}
	return v.want.MAC.String()
}

// foundMAC is the device's address; where that is its parent's, the parent's counts.
func foundMAC(v *view) string {
	if v.home != nil && (v.isIPVtap() || v.want.Mode == "passthru") {
		return v.home.MAC.String()
	}
	return v.MAC.String()
}

func mendMAC(v *view) remedy {
	mac, _ := net.ParseMAC(wantMAC(v))
	if v.isIPVtap() {
		r := byDetach(v)
		r.left = fmt.Sprintf("its parent device %s has another address than the guest now: %s", v.home.Name, r.cure)
		return r
	}
	return setting(v, "address "+mac.String(), rtnl.MAC(mac))
}

// wantMTU is what the device should carry; 0 where that is not known.
func (v *view) wantMTU() int {
	switch {
	case v.isSocket(), v.isElsewhere(): // there it might become a bridge's MTU
		return 0
	case v.want.Switch:
		return v.want.GuestMTU()
	case v.home == nil:
		return 0
	}
	return v.home.MTU
}

func wantMTU(v *view) string { return strconv.Itoa(v.wantMTU()) }

func mendMTU(v *view) remedy {
	r := setting(v, fmt.Sprintf("mtu %d", v.wantMTU()))
	r.fix = fix{kind: fixMTU}
	return r
}

func mendIPv6(v *view) remedy {
	r := setting(v, "inet6 addr_gen_mode none")
	r.fix = fix{kind: fixIPv6}
	return r
}

// mendMode: the kernel refuses to change into or out of passthru, and forgets the senders of mode source.
func mendMode(v *view) remedy {
	found := macvtap.ModeName(v.Link)
	if v.want.Mode == "passthru" || found == "passthru" || v.want.Mode == "source" {
		return byDetach(v)
	}
	what := "mode " + v.want.Mode
	return byReconcile(fmt.Sprintf("RTM_NEWLINK %s: %s", v.Name, what), "set: "+what, fix{kind: fixMode})
}

func mendRxFilter(v *view) remedy {
	all := v.want.RxFilter != nic.RxNone
	return setting(v, "allmulti "+nic.OnOff(all), rtnl.AllMulti(all))
}

// countsQueues reports whether it is known how many the VMM has open.
func (v *view) countsQueues() bool { return len(v.holders) > 0 && v.hasLink() && !v.isPlain() }

// A NIC is found by the name that InterfaceName makes, or by an altname.
func wantName(v *view) string { return cmp.Or(v.missingName(), v.Name) }

func foundName(v *view) string { return v.Name }

// missingName is one of its names that the link has neither as its name nor as an altname; empty for none. The full
// name is an altname only beside the short one, as Spec.interfaceName has it.
func (o *ours) missingName() string {
	name, altName := nic.InterfaceName(o.want.VM, o.want.NIC)
	switch {
	case !o.isNamed(name):
		return name
	case o.Name == name && altName != "" && !o.isNamed(altName):
		return altName
	}
	return ""
}

func (o *ours) isNamed(name string) bool {
	return o.Name == name || slices.Contains(o.AltNames, name)
}

func mendName(v *view) remedy {
	name := v.missingName()
	return byReconcile(fmt.Sprintf("RTM_NEWLINKPROP %s: altname %q", v.Name, name), "given the altname "+name, fix{kind: fixAltName, name: name})
}

func wantBridge(v *view) string {
	if v.want.Switch {
		return ""
	}
	return v.want.Source
}

func mendBridge(v *view) remedy {
	free := console.Quote([]string{"ip", "link", "set", v.Name, "nomaster"}) + " && vmnet reconcile"
	switch {
	case v.master != "" && v.want.Switch:
		r := byAdmin("%s", free)
		r.left = fmt.Sprintf("it is a port of %s, and belongs on switch %s", v.master, v.want.Source)
		return r
	case v.master != "":
		r := byAdmin("%s", free)
		r.left = fmt.Sprintf("it is a port of %s, not of %s", v.master, v.want.Source)
		return r
	case v.home == nil:
		return byAdmin("vmnet bridge create %s && vmnet reconcile", v.want.Source)
	}
	br := v.home
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s: mtu %d, master %s, up", v.Name, br.MTU, br.Name), "put back on "+br.Name, fix{kind: fixBridge})
}

// hasSettings reports whether the port's settings are known, and those of its bridge. A tap of which only its bridge is
// known may have some that somebody else has given it, unless the policy has.
func (v *view) hasSettings() bool { return v.port != nil && (!v.isPlain() || v.want.Port != "") }

func mendPort(v *view) remedy {
	want := v.want.PortConfig()
	text := fmt.Sprintf("port set to %s, it was %s", orNothing(want.On(v.home).String()), orNothing(v.port.String()))
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s, of AF_BRIDGE: %s", v.Name, orNothing(want.String())), text, fix{kind: fixPort})
}

// needsVLAN reports whether the port should be, and is, in no VLAN of a bridge that filters them.
func (v *view) needsVLAN() bool {
	return v.hasSettings() && bridge.NoVLAN(v.home, v.want.PortConfig()) && bridge.NoVLAN(v.home, *v.port)
}

func mendVLAN(v *view) remedy {
	return remedy{by: nic.MendDetach, cure: fmt.Sprintf("%s has no default VLAN, so that nothing passes a port without --vlan: %s; then attach it with --vlan", v.home.Name, v.detachCommand())}
}

// isElsewhere reports whether somebody has put a tap where it does not belong. There it is left alone.
func (v *view) isElsewhere() bool { return v.isTap() && v.master != "" && v.master != wantBridge(v) }

// knowsSeat reports whether the NIC belongs on a switch, of which it is known whether it has the NIC.
func (v *view) knowsSeat() bool {
	return v.want.Switch && v.seat.err == nil && v.seat.path != "" && !v.isElsewhere()
}

func foundSeat(v *view) string {
	if v.seatless() {
		return "none: it has ended, or lost it"
	}
	return "a port of switch " + v.want.Source
}

func mendSeat(v *view) remedy {
	switch {
	case v.isSocket():
		return remedy{by: nic.MendAttach, cure: cureOfLost, left: fmt.Sprintf("switch %s has lost it, and it leads nowhere (%s)", v.want.Source, cureOfLost)}
	case v.notRuns != nil:
		r := byAdmin("vmnet reconcile, once the switch runs")
		r.left = v.notRuns.Error()
		return r
	}
	return byReconcile(fmt.Sprintf("switch %s: add-port %s again, which it has lost", v.want.Source, v.Name), "joined again to switch "+v.want.Source, fix{kind: fixSwitch})
}

// settingsText is a switch's port's settings, for comparison.
func settingsText(cfg vswitch.PortConfig) string {
	text, err := json.Marshal(cfg)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// mendSettings: a switch's port has its settings from the first, and one by a socket cannot be made again.
func mendSettings(v *view) remedy {
	if v.isSocket() {
		return byDetach(v)
	}
	return byReconcile(fmt.Sprintf("switch %s: remove-port %s, add-port %s", v.want.Source, v.seat.port.Name, v.Name), "given its port's settings again",
		fix{kind: fixSwitchPort})
}

func foundLoop(v *view) string {
	if portState(v.seat.port) == nic.Stopped {
		return "stopped: it is part of a loop"
	}
	return "no loop"
}

// mendLoop: the port goes on by itself, once there is no loop any more.
func mendLoop(v *view) remedy {
	return byAdmin("end the loop behind it (vmnet switch show %s)", v.want.Source)
}

func mendLink(v *view) remedy {
	return setting(v, "up", rtnl.Up(true))
}

func mendCarrier(v *view) remedy { return setting(v, "carrier on", rtnl.Carrier(true)) }

// hasPortState reports whether the state of the bridge's port should be the one that it has without STP.
func (v *view) hasPortState() bool {
	return v.port != nil && v.OperUp && v.home.Up && !v.home.Bridge.STP
}

func mendPortState(v *view) remedy {
	return byReconcile(fmt.Sprintf("RTM_SETLINK %s, of AF_BRIDGE: state forwarding", v.Name), "set: forwarding",
		fix{kind: fixPortState})
}

func mendHome(v *view) remedy {
	r := byAdmin("ip link set %s up", v.home.Name)
	what := "parent device"
	if v.onBridge() {
		what = "bridge"
	}
	r.left = fmt.Sprintf("%s %s is down, nothing passes it (%s)", what, v.home.Name, r.cure)
	return r
}

func foundClaim(v *view) string {
	if v.claimed {
		return "taken by a userspace switch"
	}
	return "its own"
}

func mendClaim(v *view) remedy {
	r := byAdmin("vmnet switch remove-port SWITCH %s (vmnet switch list shows those that run)", v.home.Name)
	r.left = claimedText(v.home.Name, v.want.Type)
	return r
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// rxFilter is what a device takes in. Of one that mirrors its guest both can be right: see show.
func rxFilter(o *ours) string {
	switch {
	case o.want.RxFilter == nic.RxMirror:
		return nic.RxMirror
	case o.AllMulti:
		return nic.RxAllMulti
	}
	return nic.RxNone
}
