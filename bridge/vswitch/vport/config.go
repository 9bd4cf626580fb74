// Package vport describes a port of a switch as data: how it should be ([Config]), how it is
// ([Stats]), and what its device is connected to ([Segment]). It needs neither privilege nor a
// switch, so that programs which only talk to one need not link package vswitch. "vport" is Open
// vSwitch's word for a port of a datapath.
package vport

import (
	"fmt"
	"net"

	"vmnet/bridge/brport"
	"vmnet/bridge/portrate"
	"vmnet/bridge/portsec"
)

// Config says how a port should be. Its zero value is a port of a plain switch. Each setting is an
// option of vmnet switch add-port, and acts in these functions of package vswitch:
//
//	option                 field                 acts in
//	vlan, trunk, native    VLAN, Trunk, Native   vlan.go: classify, leaving; forward.go: between
//	forward                Forward               forward.go: accept
//	isolated               Isolated              forward.go: between
//	hairpin                Hairpin               forward.go: between; loop.go: again, looped
//	no-learning            NoLearning            forward.go: accept
//	no-flood               NoFlood               forward.go: flood
//	mtu                    MTU                   port.go: limit; forward.go: add, finish
//	mac                    MACs                  settings.go: admits, locked; switch.go: lock
//	port-security, ip,
//	ethertype              Security              forward.go: accept
//	max-addresses          MaxAddresses          settings.go: setPort; fdb_slots.go: replace
//	no-loop-guard          NoLoopGuard           loop.go: looped
//	storm, storm-broadcast,
//	storm-multicast,
//	storm-unknown          Storm                 settings.go: newSettings; storm.go: limit, take
//	storm-refused          Storm.Refused         forward.go: run; storm.go: throttle
//	rate-up, rate-down,
//	burst                  Rates                 forward.go: run, add; rate.go: slow, take
//	(vmnet prepare)        Down                  forward.go: accept, between; settings.go: locked
//
// A new setting needs a field here, a check in Validate, and the code in package vswitch that reads
// it from Port.set. As JSON it reaches the switch without more. Its option is parsed by
// wantedPort.options and shown by portSettings (cmd/vmnet/switch_port.go, with portHelp, and
// docs/man/vmnet-switch.8.md). If vmnet attach has it too, add it to Switch, to all methods of
// Limits (limits.go) and to SwitchPortConfig (tapmgr/nic/switch.go), and to AddSwitch
// (internal/cli/nicflags/switch.go) and qemu-netup(8).
type Config struct {
	// Settings has the same meaning as for a port of a kernel bridge. The switch filters
	// VLANs once a port has any. A port without VLAN and Trunk is then in VLAN 1, untagged.
	brport.Settings

	// MTU limits the length in bytes of frames that leave by the port, without Ethernet header
	// and VLAN tags. For a super-frame it limits each segment. 0 means the current MTU of the
	// wire's device if the wire follows it, otherwise 1500.
	MTU int `json:"mtu,omitempty"`

	// MACs lists the only source addresses that the port accepts; an empty list means any. In
	// the VLAN for untagged frames they are static in the FDB, so that no other port
	// can attract their frames.
	MACs []net.HardwareAddr `json:"macs,omitempty"`

	// Security says which frames the port accepts. It is for a port with one guest.
	Security portsec.Config `json:"security,omitzero"`

	// MaxAddresses limits how many addresses are learned behind the port; 0 means only the
	// limit of the FDB. Further addresses are reached by flooding.
	MaxAddresses int `json:"max_addresses,omitempty"`

	// NoLoopGuard never stops the port for a loop. The loop's other port may still be stopped.
	// It is for an uplink on which another host may send the guests' broadcasts back on
	// purpose.
	NoLoopGuard bool `json:"no_loop_guard,omitempty"`

	Storm Storm `json:"storm,omitzero"`

	// Down keeps all frames from the port, as if its device were down, and others may have its
	// addresses: its guest is still to come from elsewhere.
	Down bool `json:"down,omitempty"`

	// Rates limits how much the guest behind the port may have. The switch reads the port less
	// often when the guest sends more, and drops what is over the rate to the guest.
	Rates portrate.Config `json:"rates,omitzero"`
}

// What a switch has room for.
const (
	MaxPorts     = 1024
	MaxAddresses = 8 << 20 // in its FDB
)

// MaxName is the length limit of a port's name in bytes, that of an altname.
const MaxName = 127

const (
	minMTU  = 68
	maxMTU  = 65535
	maxMACs = 64
)

// Validate checks what can be checked without the wire. Its error matches brport.ErrInvalid with
// errors.Is.
func (cfg Config) Validate() error {
	if err := cfg.Settings.Validate(); err != nil {
		return err
	}
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w port: %w", brport.ErrInvalid, err)
	}
	return nil
}

func (cfg Config) validate() error {
	switch {
	case cfg.MTU != 0 && (cfg.MTU < minMTU || cfg.MTU > maxMTU):
		return fmt.Errorf("MTU %d: want %d to %d bytes", cfg.MTU, minMTU, maxMTU)
	case len(cfg.MACs) > maxMACs:
		return fmt.Errorf("%d addresses: want at most %d", len(cfg.MACs), maxMACs)
	case cfg.MaxAddresses < 0 || cfg.MaxAddresses > MaxAddresses:
		return fmt.Errorf("limit of %d addresses: want 0 to %d", cfg.MaxAddresses, MaxAddresses)
	}
	for _, mac := range cfg.MACs {
		if len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("address %s: want 6 bytes, not multicast", mac)
		}
	}
	if err := cfg.Security.Validate(); err != nil {
		return err
	}
	if err := cfg.Storm.validate(); err != nil {
		return err
	}
	return cfg.Rates.Validate()
}
