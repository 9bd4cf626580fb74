package nic

import "errors"

// Via says how the VMM gets a NIC, if it is not given the files of it by its own monitor.
type Via string

// ViaLibvirt gives libvirt the name of the finished device: libvirt plugs it, and knows it.
// ViaMonitor passes fds to QEMU through libvirt's monitor commands: libvirt does not know the NIC,
// marks the domain as tainted, and cannot migrate it. ViaName leaves a tap for a VMM that opens it
// by its name, and that has no monitor which vmnet knows.
const (
	ViaLibvirt Via = "libvirt"
	ViaMonitor Via = "monitor"
	ViaName    Via = "name"
)

// ByName reports whether another process opens the device by its name.
func (v Via) ByName() bool { return v == ViaLibvirt || v == ViaName }

// validateNamed checks a NIC whose VMM opens it by its name: that must be a tap, and whatever the
// VMM decides of its device is not known.
func (s Spec) validateNamed() error {
	switch {
	case s.Via != ViaName:
		return nil
	case s.Lower != nil:
		return errors.New("a VMM opens a tap by its name: --bridge, --network or --routed says where that is")
	case s.Switch != nil:
		return errors.New("a switch has its ports' taps itself (vmnet switch run --tap makes one)")
	case s.Queues == QueuesAuto:
		return errors.New("how many processors the VMM's guest has is not known: want a number of queues")
	case s.LinkDown, s.Prepared, s.Persistent, s.MTU != 0, len(s.DeviceOptions) > 0, s.Vhost == VhostOn:
		return errors.New("link, MTU, vhost and device are the VMM's own settings")
	}
	return nil
}

// DeviceID returns the id of a NIC's QEMU device. The netdev's id and the getfd names derive from
// it (package qmp), since QMP lists neither.
func DeviceID(nic string) string { return "vmnet-" + nic }

// LibvirtAlias returns libvirt's alias, and so QEMU's id, of a NIC that was handed over by name.
// Libvirt accepts only aliases that begin with "ua-" (virDomainDeviceAliasIsUserAlias in
// src/conf/domain_conf.c).
func LibvirtAlias(nic string) string { return "ua-" + DeviceID(nic) }

// DeviceOf returns the id of the QEMU device of a NIC that was handed over in that way.
func DeviceOf(nic string, via Via) string {
	if via == ViaLibvirt {
		return LibvirtAlias(nic)
	}
	return DeviceID(nic)
}
