package inventory

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/roster"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

// Finding is a property that differs.
type Finding struct {
	What, Want, Found string
	Remedy
}

// Difference returns the finding as check reports it.
func (f Finding) Difference(dev *Device) nic.Difference {
	return nic.Difference{
		VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, What: f.What, Want: f.Want,
		Found: f.Found, MendedBy: f.By, Mend: f.Cure,
	}
}

// String returns the finding in one line, with its cure.
func (f Finding) String() string {
	return fmt.Sprintf("%s: want %s, found %s (%s)", f.What, cmp.Or(f.Want, "none"), cmp.Or(f.Found, "none"), f.Cure)
}

// Notice returns the finding as a verb reports it that was not asked to compare.
func (f Finding) Notice() string { return cmp.Or(f.left, f.String()) }

// Rates is the name of the property that a NIC's limits are.
const Rates = "rates"

// A property is one thing in which a NIC can differ from what its record says. The table of them
// serves check, reconcile and attach alike, in the order in which differences are mended.
type property struct {
	name  string
	of    func(v *View) bool // whether the NIC has it, and it is known
	want  func(v *View) string
	found func(v *View) string
	mend  func(v *View) Remedy
}

// Compare returns the properties that differ from the record, in the order of properties.
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

// properties lists them in the order in which they are mended: a port has its settings before it
// goes up.
var properties = []property{
	{"detach", func(v *View) bool {
		return v.Want.Phase == nic.PhaseDetaching
	}, is("done"), is("the guest has not released it"), mendDetach},
	{"lifetime", (*View).lives, is("that of its guest"), lifetime, mendLifetime},
	{"host MAC", func(v *View) bool { return v.HasLink() }, wantMAC, foundMAC, mendMAC},
	{"MTU", func(v *View) bool {
		return v.WantMTU() != 0
	}, wantMTU, func(v *View) string { return strconv.Itoa(v.MTU) }, mendMTU},
	{"IPv6 of the host", func(v *View) bool {
		return v.HasLink()
	}, is("off"), func(v *View) string { return nic.OnOff(v.HostIPv6) }, mendIPv6},
	{"mode", func(v *View) bool {
		return v.Want.Mode != ""
	}, func(v *View) string { return v.Want.Mode }, func(v *View) string { return macvlan.ModeName(v.Link) }, mendMode},
	{"rx filter", func(v *View) bool {
		return v.Want.RxFilter != ""
	}, func(v *View) string {
		return v.Want.RxFilter
	}, func(v *View) string { return RxFilter(v.Device) }, mendRxFilter},
	{"queues", (*View).countsQueues, func(v *View) string {
		return strconv.Itoa(v.Want.Queues)
	}, func(v *View) string { return strconv.Itoa(len(v.Holders[0].FDs)) }, byDetach},
	{"vhost", func(v *View) bool {
		return v.Want.Vhost && v.vhosts >= 0
	}, is("on"), func(v *View) string { return nic.OnOff(v.vhosts > 0) }, byDetach},
	{"name", func(v *View) bool { return v.HasLink() && !v.IsPlain() }, wantName, foundName, mendName},
	{"port security", (*View).isSecured, wantGuard, foundGuard, mendGuard},
	{"allow in", (*View).isFiltered, wantInbound, foundInbound, mendInbound},
	{Rates, func(v *View) bool { return v.rates != nil }, wantRates, foundRates, mendRates},
	{"bridge", func(v *View) bool {
		return v.isTap() && v.OVS.Err == nil
	}, wantBridge, func(v *View) string { return v.MasterName }, mendBridge},
	{"network", func(v *View) bool {
		return v.Want.Network != "" && v.Home != nil
	}, func(v *View) string {
		return v.Want.Network
	}, func(v *View) string { return roster.NetworkOf(v.Home) }, mendNetwork},
	{"port", (*View).hasSettings, func(v *View) string {
		return bridges.Effective(v.Home, v.Want.PortConfig()).String()
	}, func(v *View) string { return v.port.String() }, mendPort},
	{"ids", (*View).knowsOVS, wantIDs, foundIDs, mendOVSPort},
	{"VLAN", (*View).needsVLAN, is("one at least"), is(""), mendVLAN},
	{"switch", (*View).knowsSeat, func(v *View) string {
		return "a port of switch " + v.Want.Source
	}, foundSeat, mendSeat},
	{"settings", func(v *View) bool {
		return v.SwitchPort.Port != nil
	}, func(v *View) string {
		return settingsText(v.Want.SwitchPortConfig())
	}, func(v *View) string { return settingsText(v.SwitchPort.Port.Config) }, mendSettings},
	{"switch port", func(v *View) bool { return v.SwitchPort.Port != nil }, is("no loop"), foundLoop, mendLoop},
	{"link", func(v *View) bool {
		return v.HasLink()
	}, wantLink, func(v *View) string { return nic.UpDown(v.Up) }, mendLink},
	{"carrier", func(v *View) bool {
		return v.isTap() && v.Up && !v.IsPlain()
	}, wantCarrier, func(v *View) string { return nic.OnOff(v.Carrier) }, mendCarrier},
	{"routing", func(v *View) bool {
		return v.IsRouted() && v.HasLink()
	}, wantRouting, foundRouting, mendRouting},
	// removed last, so that a NIC that moves is checked until it has moved
	{"port security", func(v *View) bool { return v.guard != nil && !v.isSecured() }, wantGuard, foundGuard, mendGuard},
	{"allow in", func(v *View) bool {
		return v.inbound != nil && !v.isFiltered()
	}, wantInbound, foundInbound, mendInbound},
	{"port state", (*View).hasPortState, is(rtnl.Forwarding.String()), func(v *View) string {
		return v.Port.State.String()
	}, mendPortState},
	{"Open vSwitch", func(v *View) bool {
		return v.knowsOVS() && v.Up
	}, is(working), foundTrouble, mendTrouble},
	{"bridge state", func(v *View) bool {
		return v.onBridge() && v.Home != nil
	}, is("up"), func(v *View) string { return nic.UpDown(v.Home.Up) }, mendHome},
	{"parent device", func(v *View) bool {
		return !v.onBridge() && !v.IsOVS() && v.Home != nil
	}, is("up"), func(v *View) string { return nic.UpDown(v.Home.Up) }, mendHome},
	{"frames of the parent device", func(v *View) bool {
		return !v.onBridge() && !v.IsOVS() && v.Home != nil
	}, is("its own"), foundClaim, mendClaim},
}

func is(text string) func(*View) string { return func(*View) string { return text } }

// wantLink returns whether the device should be up: not before a commit. A macvtap or ipvtap has
// the carrier of its parent device, so it is down while its guest's link is.
func wantLink(v *View) string { return nic.UpDown(v.Want.IsUp() || v.isTap() && !v.Want.Prepared) }

func wantCarrier(v *View) string { return nic.OnOff(!v.Want.LinkDown) }

// lives reports whether the NIC is a tap that should end with its guest: any process that holds a
// tap can make it persistent. The holder of a plain tap may do so.
func (v *View) lives() bool {
	return v.isTap() && v.Want.Phase != nic.PhaseDetaching && !v.IsPlain() && len(v.Holders) > 0
}

func lifetime(v *View) string {
	if v.Tun.Persist {
		return "persistent"
	}
	return "that of its guest"
}

// wantMAC returns the device's address. A tap's must not be a guest's: a bridge does not forward
// frames for its ports' own addresses.
func wantMAC(v *View) string {
	if v.IsPlain() {
		return stablemac.HostMAC(v.MAC).String()
	}
	if v.isTap() {
		return stablemac.HostMAC(v.Want.MAC).String()
	}
	return v.Want.MAC.String()
}

// foundMAC returns the device's address, or its parent's if the device shares that.
func foundMAC(v *View) string {
	if v.Home != nil && (v.isIPVtap() || v.Want.Mode == "passthru") {
		return v.Home.MAC.String()
	}
	return v.MAC.String()
}

// WantMTU returns the MTU in bytes that the device should have, or 0 if that is not known.
func (v *View) WantMTU() int {
	switch {
	case v.IsSocket(), v.isElsewhere(): // there it might become a bridge's MTU
		return 0
	case v.Want.Switch:
		return v.Want.GuestMTU()
	case v.IsOVS(): // the bridge's follows that of its ports
		return max(v.MTU, v.Want.GuestMTU())
	case v.Home == nil:
		return 0
	}
	return v.Home.MTU
}

func wantMTU(v *View) string { return strconv.Itoa(v.WantMTU()) }

// countsQueues reports whether the number of queues that the VMM has open is known.
func (v *View) countsQueues() bool { return len(v.Holders) > 0 && v.HasLink() && !v.IsPlain() }

// A NIC is found by the name that InterfaceName makes, or by an altname.
func wantName(v *View) string { return cmp.Or(v.missingName(), v.Name) }

func foundName(v *View) string { return v.Name }

// missingName returns one of the NIC's names that the link has neither as its name nor as an
// altname, or "". The full name is an altname only beside the short one: see nic.InterfaceName.
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

func wantBridge(v *View) string {
	if v.Want.Switch || v.IsRouted() {
		return ""
	}
	return v.Want.Source
}

// hasSettings reports whether the port's settings are known and have to be as recorded. Those of a
// plain tap may be changed by others, unless the policy has set them.
func (v *View) hasSettings() bool { return v.port != nil && (!v.IsPlain() || v.Want.Port != "") }

// isSecured reports whether the kernel should check the guest's frames, and it is known whether it
// does.
func (v *View) isSecured() bool { return v.guard != nil && !v.Want.Security.IsZero() }

// isFiltered reports whether the kernel should filter what comes in to the guest, and it is known
// whether it does.
func (v *View) isFiltered() bool { return v.inbound != nil && !v.Want.AllowIn.IsZero() }

func wantInbound(v *View) string { return v.Want.Inbound().String() }

func foundInbound(v *View) string {
	switch cfg := v.Want.Inbound(); {
	case v.inbound.Is(cfg):
		return wantInbound(v)
	case v.inbound.Equal(cfg):
		return otherVersion
	}
	return v.inbound.String()
}

func wantRates(v *View) string { return v.Want.Rates.String() }

func foundRates(v *View) string {
	if v.rates.Is(v.Want.Rates) {
		return wantRates(v)
	}
	if err := v.rates.Obstacle(v.Want.Rates); err != nil {
		return fmt.Sprintf("%s, and %v", v.rates, err)
	}
	return v.rates.String()
}

// otherVersion is a program that checks what it should, but is not that of this build.
const otherVersion = "the program of another version of vmnet"

func wantGuard(v *View) string { return v.Want.PortSecurity().String() }

func foundGuard(v *View) string {
	switch cfg := v.Want.PortSecurity(); {
	case !v.guard.Config.Equal(cfg):
		return v.guard.Config.String()
	case !cfg.IsZero() && !v.guard.Current:
		return otherVersion
	}
	return wantGuard(v)
}

// needsVLAN reports whether the port should be, and is, in no VLAN of a bridge that filters them.
func (v *View) needsVLAN() bool {
	return v.hasSettings() && bridges.NoVLAN(v.Home, v.Want.PortConfig()) && bridges.NoVLAN(v.Home, *v.port)
}

// isElsewhere reports whether a tap has another master than its record says. Such a tap is left
// alone.
func (v *View) isElsewhere() bool {
	return v.isTap() && v.MasterName != "" && v.MasterName != wantBridge(v)
}

// knowsSeat reports whether the NIC belongs on a switch that has said whether it has the NIC's
// port.
func (v *View) knowsSeat() bool {
	return v.Want.Switch && v.SwitchPort.Err == nil && v.SwitchPort.Path != "" && !v.isElsewhere()
}

func foundSeat(v *View) string {
	if v.IsDisconnected() {
		return "none: it has ended, or lost it"
	}
	return "a port of switch " + v.Want.Source
}

// settingsText returns the settings of a switch's port as text, for comparison.
func settingsText(cfg vport.Config) string {
	text, err := json.Marshal(cfg)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func foundLoop(v *View) string {
	if portState(v.SwitchPort.Port) == nic.Stopped {
		return "stopped: it is part of a loop"
	}
	return "no loop"
}

// wantRouting: until a commit the host answers for none of the addresses of a prepared NIC.
func wantRouting(v *View) string {
	if v.Want.Prepared {
		return "none before a commit"
	}
	return "complete"
}

func foundRouting(v *View) string {
	switch {
	case v.Home == nil:
		return "no " + v.Want.Source
	case len(v.answers) > 0:
		return "answers for " + nic.FormatIPs(v.answers)
	case v.Want.Prepared:
		return wantRouting(v)
	case len(v.missing) > 0:
		return "no " + strings.Join(v.missing, ", no ")
	}
	return "complete"
}

// hasPortState reports whether the port of the bridge should forward: nothing is down, and STP is
// off.
func (v *View) hasPortState() bool {
	return v.port != nil && v.onBridge() && v.OperUp && v.Home.Up && !v.Home.Bridge.STP
}

func foundClaim(v *View) string {
	if v.claimed {
		return "taken by a userspace switch"
	}
	return "its own"
}

// OrNothing returns s, or words for no port settings.
func OrNothing(s string) string { return cmp.Or(s, "nothing special") }

// knowsOVS reports whether Open vSwitch was asked about the NIC, and has its port.
func (v *View) knowsOVS() bool { return v.IsOVS() && v.OVS.Port != nil }

func wantIDs(v *View) string {
	return fmt.Sprintf("iface-id %s, attached-mac %s", v.Want.OVSIfaceID(), v.Want.MAC)
}

func foundIDs(v *View) string {
	return fmt.Sprintf("iface-id %s, attached-mac %s", v.OVS.Port.IfaceID, v.OVS.Port.MAC)
}

const working = "working"

func foundTrouble(v *View) string { return cmp.Or(v.OVS.Port.Trouble(), working) }
