package nic

import (
	"cmp"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
)

// Switch says how a NIC is a port of a userspace switch (package vswitch).
type Switch struct {
	// Name is as vmnet switch run was given it, or its control socket's path, with a slash. It is
	// empty, with By, for that of a network of the caller until package userdirs has found it.
	Name string
	By   By // --via of attach; empty means ByAuto

	// LockMAC drops frames from the guest whose source is not the NIC's own address.
	LockMAC bool
	// Storm limits the broadcasts, multicast frames and frames to unknown addresses, each per
	// second, that are flooded for the guest; 0 means DefaultStorm, NoLimit any number. The switch
	// reads less often from a guest that sends more.
	Storm int
	// MaxAddresses is how many addresses the switch learns behind the port; 0 means
	// DefaultMaxAddresses, NoLimit as many as it has room for.
	MaxAddresses int
}

// By is what connects QEMU with the switch: a word of attach's --via for a NIC on a switch. The
// other words of --via say how a libvirt guest gets the NIC (Via).
type By string

const (
	// BySocket is a stream socketpair: no privilege, no device on the host, one queue, no
	// offloads.
	BySocket By = "socket"
	// ByTap is a tap whose kernel side the switch takes by a packet socket: queues, offloads and
	// vhost. It needs CAP_NET_ADMIN and CAP_NET_RAW.
	ByTap By = "tap"
	// ByVhostUser is the guest's own memory: QEMU shares it, and the switch takes frames from the
	// guest's rings and puts frames there (vhost-user). It needs no privilege, but a guest that was
	// started with shared memory. The switch can read and write all of the guest's memory, so
	// ByAuto never means it.
	ByVhostUser By = "vhost-user"
	// ByAuto is a tap if the caller may make one, else a socket.
	ByAuto By = "auto"
)

// Default limits of a guest on a switch. Each broadcast of a port costs a system call at every
// other port, and its addresses take room from those of others.
const (
	DefaultStorm        = vport.GuestFrames // frames per second of each kind
	DefaultMaxAddresses = 256
	NoLimit             = vport.NoLimit
)

// TypeSocket is the type of a NIC that a socket connects with a userspace switch.
const TypeSocket = "socket"

// TypeVhostUser is the type of a NIC whose guest shares its memory with a userspace switch.
const TypeVhostUser = "vhost-user"

// validate checks what needs no switch.
func (s *Switch) validate(spec Spec) error {
	if !spec.onOwn() {
		if _, err := control.Path(s.Name); err != nil {
			return err
		}
	}
	if s.By == BySocket || s.By == ByAuto {
		if err := spec.CheckSocket(); err != nil && s.By == BySocket {
			return err
		}
	}
	if s.By == ByVhostUser {
		if err := spec.CheckVhostUser(); err != nil {
			return err
		}
	}
	switch {
	case !slices.Contains(Bys, s.By):
		return fmt.Errorf("by %q: want %s, %s, %s or %s", s.By, ByAuto, BySocket, ByTap, ByVhostUser)
	case spec.Via == ViaLibvirt:
		return fmt.Errorf(
			"libvirt cannot plug a port of a userspace switch (--via monitor hands it to QEMU instead)")
	case s.Storm < NoLimit || s.Storm > vport.MostStorm:
		return fmt.Errorf("storm limit of %d frames per second: want 1 to %d, or off", s.Storm, vport.MostStorm)
	case s.MaxAddresses < NoLimit || s.MaxAddresses > vport.MostAddresses:
		return fmt.Errorf("%d addresses behind a port: want 1 to %d, or off", s.MaxAddresses, vport.MostAddresses)
	}
	return nil
}

// Bys are all words of By.
var Bys = []By{ByAuto, BySocket, ByTap, ByVhostUser}

// CheckVhostUser returns an error if a switch that shares the guest's memory cannot serve the NIC.
func (s Spec) CheckVhostUser() error {
	switch {
	case s.Vhost == VhostOn:
		return fmt.Errorf("vhost-net is the kernel's, and the switch takes its place (--vhost off, or --via tap)")
	case s.Queues > control.MaxPairs:
		return fmt.Errorf("%d queues: vhost-user has at most %d (--via tap has more)", s.Queues, control.MaxPairs)
	case s.Device != "":
		return fmt.Errorf("vhost-user has no interface that could be named %s (--via tap)", s.Device)
	case !s.IsVirtio():
		return fmt.Errorf("model %s has no rings that a switch could serve: only virtio models do (--via tap)", s.Model)
	case s.LinkDown:
		return fmt.Errorf("QEMU sets the link of a vhost-user NIC up whenever its switch connects, " +
			"so it cannot stay down (--via tap)")
	}
	return nil
}

// NeedsNoDevice reports whether the NIC is a port of a switch without a device on the host, for
// which no privilege is needed.
func (s Spec) NeedsNoDevice() bool {
	return s.Switch != nil && (s.Switch.By == BySocket || s.Switch.By == ByVhostUser)
}

// CheckSocket returns an error if the NIC needs a tap.
func (s Spec) CheckSocket() error {
	switch {
	case s.Queues > 1:
		return fmt.Errorf("%d queues: a socket has one (--via tap has more)", s.Queues)
	case s.Vhost == VhostOn:
		return fmt.Errorf("vhost-net cannot serve a socket (--via tap)")
	case s.Device != "":
		return fmt.Errorf("a socket has no interface that could be named %s (--via tap)", s.Device)
	}
	return nil
}

// Canonical returns the switch's name in its only canonical form.
func (s *Switch) Canonical() (string, error) {
	if !strings.Contains(s.Name, "/") {
		return s.Name, nil
	}
	return filepath.Abs(s.Name)
}

// Differences reports where an existing NIC is not what is asked for.
func (s *Switch) Differences(r Record, add func(what string, is, want any)) {
	is, isErr := control.Path(r.Source)
	asked, err := control.Path(s.Name)
	if is != asked || isErr != nil || err != nil { // a name, and the path of that switch's socket, are one
		add("switch", r.Source, s.Name)
	}
	if s.By != "" && s.By != ByAuto {
		add("type", r.Type, string(s.By))
	}
	s.limitDifferences(r.Limits, add)
}

// limitDifferences compares only the limits that were requested.
func (s *Switch) limitDifferences(is SwitchLimits, add func(what string, is, want any)) {
	if !s.LockMAC {
		is.LockMAC = false
	}
	if s.Storm == 0 {
		is.Storm = 0
	}
	if s.MaxAddresses == 0 {
		is.MaxAddresses = 0
	}
	add("limits", cmp.Or(is.String(), "the default"), cmp.Or(s.Limits().String(), "the default"))
}

// SwitchLimits are the limits of a guest's port that a record keeps.
type SwitchLimits = vport.Limits

// Limits returns what a record keeps of the limits.
func (s *Switch) Limits() SwitchLimits {
	g := SwitchLimits{LockMAC: s.LockMAC, Storm: s.Storm, MaxAddresses: s.MaxAddresses}
	if g.Storm == DefaultStorm {
		g.Storm = 0
	}
	if g.MaxAddresses == DefaultMaxAddresses {
		g.MaxAddresses = 0
	}
	return g
}

// SwitchPortConfig returns the settings that the switch's port should have.
func (r Record) SwitchPortConfig() vport.Config {
	limit := func(n, def int) int { return max(0, cmp.Or(n, def)) } // the switch's 0 is no limit
	storm := limit(r.Limits.Storm, DefaultStorm)
	cfg := vport.Config{
		Settings: r.PortConfig(), MaxAddresses: limit(r.Limits.MaxAddresses, DefaultMaxAddresses),
		Storm: vport.GuestStorm(storm),
	}
	cfg.Security, cfg.Rates = r.PortSecurity(), r.Rates
	if r.Limits.LockMAC {
		cfg.MACs = []net.HardwareAddr{r.MAC}
	}
	if r.IsSocket() { // a tap has an MTU itself, and can be down
		cfg.MTU, cfg.Down = r.GuestMTU(), r.Prepared
	}
	return cfg
}
