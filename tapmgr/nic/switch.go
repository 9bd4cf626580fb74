package nic

import (
	"cmp"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
)

// Switch says how a NIC is a port of a userspace switch (package vswitch).
type Switch struct {
	Name string // as vmnet switch run was given it, or its control socket's path, with a slash
	By   By     // empty means ByAuto

	// LockMAC drops frames from the guest that have another source than the NIC's own address.
	LockMAC bool
	// Storm is how many broadcasts, multicast frames and frames to unknown addresses the guest may
	// have flooded, each in a second; 0 means DefaultStorm, NoLimit any number. Of a guest that
	// sends more the switch reads less often.
	Storm int
	// MaxAddresses is how many addresses the switch learns behind the port; 0 means
	// DefaultMaxAddresses, NoLimit as many as it has room for.
	MaxAddresses int
}

// By says what is between QEMU and the switch.
type By string

const (
	// BySocket is a datagram socketpair: no privilege, no device on the host, one queue, no
	// offloads.
	BySocket By = "socket"
	// ByTap is a tap whose kernel side the switch takes by a packet socket: queues, offloads and
	// vhost. It needs CAP_NET_ADMIN and CAP_NET_RAW.
	ByTap By = "tap"
	// ByAuto is a tap where that can be, else a socket.
	ByAuto By = "auto"
)

// What a guest may do to the others of its switch by default. A port's broadcasts cost a system
// call at each other port, and its addresses the room of others'.
const (
	DefaultStorm        = vport.GuestFrames // frames per second of each kind
	DefaultMaxAddresses = 256
	NoLimit             = -1
)

// TypeSocket is the type of a NIC that is a switch's port by a socket.
const TypeSocket = "socket"

// Limits of a Switch; those of the switch itself are higher.
const (
	maxStorm     = 10_000_000
	maxAddresses = 65536
)

// validate checks what needs no switch; nil is valid.
func (s *Switch) validate(spec Spec) error {
	if s == nil {
		return nil
	}
	if _, err := control.Path(s.Name); err != nil {
		return err
	}
	if s.By == BySocket || s.By == ByAuto {
		if err := spec.CheckSocket(); err != nil && s.By == BySocket {
			return err
		}
	}
	switch {
	case !slices.Contains([]By{ByAuto, BySocket, ByTap}, s.By):
		return fmt.Errorf("by %q: want %s, %s or %s", s.By, ByAuto, BySocket, ByTap)
	case spec.Via == ViaLibvirt:
		return fmt.Errorf("libvirt cannot plug a port of a userspace switch: a guest of its gets one with --via monitor")
	case s.Storm < NoLimit || s.Storm > maxStorm:
		return fmt.Errorf("storm limit of %d frames per second: want 1 to %d, or off", s.Storm, maxStorm)
	case s.MaxAddresses < NoLimit || s.MaxAddresses > maxAddresses:
		return fmt.Errorf("%d addresses behind a port: want 1 to %d, or off", s.MaxAddresses, maxAddresses)
	}
	return nil
}

// CheckSocket returns an error where the NIC needs a tap, and a socket will not do.
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

// Canonical is the name for which there is one way to write it.
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

// limitDifferences compares what is asked for, and leaves the rest open.
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

// SwitchLimits is what a record keeps of a Switch's limits: 0 for the defaults.
type SwitchLimits struct {
	LockMAC      bool
	Storm        int
	MaxAddresses int
}

// Limits returns what a record keeps of the limits.
func (s *Switch) Limits() SwitchLimits {
	g := SwitchLimits{s.LockMAC, s.Storm, s.MaxAddresses}
	if g.Storm == DefaultStorm {
		g.Storm = 0
	}
	if g.MaxAddresses == DefaultMaxAddresses {
		g.MaxAddresses = 0
	}
	return g
}

func (g SwitchLimits) encode(add func(key, value string)) {
	if g.LockMAC {
		add("lock", "on")
	}
	if g.Storm != 0 {
		add("storm", strconv.Itoa(g.Storm))
	}
	if g.MaxAddresses != 0 {
		add("addresses", strconv.Itoa(g.MaxAddresses))
	}
}

// set takes one field; false for a value that encode never writes.
func (g *SwitchLimits) set(key, value string) bool {
	if key == "lock" {
		g.LockMAC = value == "on"
		return g.LockMAC
	}
	n, err := strconv.Atoi(value)
	if key == "storm" {
		g.Storm = n
		return err == nil && n >= NoLimit && n <= maxStorm
	}
	g.MaxAddresses = n
	return err == nil && n >= NoLimit && n <= maxAddresses
}

// String is the limits for people, empty for the defaults: "locked;storm:off".
func (g SwitchLimits) String() string {
	var words []string
	if g.LockMAC {
		words = append(words, "locked")
	}
	for _, l := range []struct {
		word  string
		limit int
	}{{"storm", g.Storm}, {"addresses", g.MaxAddresses}} {
		switch {
		case l.limit == NoLimit:
			words = append(words, l.word+":off")
		case l.limit != 0:
			words = append(words, fmt.Sprintf("%s:%d", l.word, l.limit))
		}
	}
	return strings.Join(words, ";")
}

// SwitchPortConfig is how the port should be.
func (r Record) SwitchPortConfig() vport.Config {
	limit := func(n, def int) int { return max(0, cmp.Or(n, def)) } // the switch's 0 is no limit
	storm := limit(r.Limits.Storm, DefaultStorm)
	cfg := vport.Config{
		Settings: r.PortConfig(), MaxAddresses: limit(r.Limits.MaxAddresses, DefaultMaxAddresses),
		Storm: vport.GuestStorm(storm),
	}
	if r.Limits.LockMAC {
		cfg.MACs = []net.HardwareAddr{r.MAC}
	}
	if r.Type == TypeSocket { // a tap has an MTU itself
		cfg.MTU = r.GuestMTU()
	}
	return cfg
}
