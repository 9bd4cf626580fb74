package vswitch

import (
	"cmp"
	"fmt"
	"slices"

	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/vport"
)

// settings are a port's vport.Config, with what its frames are checked by. Only the buckets'
// levels change: new settings replace the former ones as a whole, like a switch's table, so that
// receivers need no lock.
type settings struct {
	cfg      vport.Config
	vlans    vlans
	security *portsec.Checker // nil for none
	macs     []uint64

	broadcasts, multicasts, unknowns, refused bucket

	up, down meter
}

func newSettings(cfg vport.Config) *settings {
	s := &settings{cfg: cfg, vlans: newVLANs(cfg.Settings)}
	for _, mac := range cfg.MACs {
		s.macs = append(s.macs, macWord(mac))
	}
	if !cfg.Security.IsZero() {
		s.security = portsec.NewChecker(cfg.Security)
	}
	s.broadcasts.limit(cfg.Storm.Broadcast)
	s.multicasts.limit(cfg.Storm.Multicast)
	s.unknowns.limit(cfg.Storm.Unknown)
	s.refused.limit(cfg.Storm.Refused)
	s.up.set(cfg.Rates.UpBucket())
	s.down.set(cfg.Rates.DownBucket())
	return s
}

// admits reports whether the port accepts a source address (vport.Config.MACs).
func (s *settings) admits(src uint64) bool { return len(s.macs) == 0 || slices.Contains(s.macs, src) }

// locked returns the keys of the addresses that the port is locked to, in the VLAN of its untagged
// frames. While it is down, another port may be locked to them.
func (s *settings) locked() []Key {
	if !s.vlans.hasPVID || s.cfg.Down {
		return nil
	}
	var keys []Key
	for _, mac := range s.macs {
		keys = append(keys, keyOf(mac, s.vlans.pvid))
	}
	return keys
}

// allows reports whether the FDB may keep an address behind a port whose settings change from was
// to s.
func (s *settings) allows(k Key, static bool, was *settings) bool {
	switch {
	case !s.vlans.has(k.VLAN()):
		return false
	case static:
		return slices.Contains(s.locked(), k) || !slices.Contains(was.locked(), k)
	}
	return !s.cfg.Down && s.admits(k.mac())
}

// SetPort replaces all settings of a port while its frames pass. No frame is lost for it; frames in
// flight are handled by the former settings or the new ones. The FDB keeps the port's addresses,
// except those in VLANs that the port has left, and those from which it accepts no frames any more.
//
// If another port is locked to one of the addresses, the error matches fs.ErrExist with errors.Is;
// if there is no such port, fs.ErrNotExist; if the settings are invalid, or its socket has no
// room for frames of that MTU, brport.ErrInvalid. The port's settings are then the former ones.
func (sw *Switch) SetPort(name string, cfg vport.Config) error {
	if err := sw.setPort(name, cfg); err != nil {
		return fmt.Errorf("set port %q: %w", name, err)
	}
	return nil
}

func (sw *Switch) setPort(name string, cfg vport.Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	sw.mu.Lock()
	defer sw.mu.Unlock()
	old := sw.table.Load()
	p := old.find(name)
	if p == nil {
		return ErrNoPort
	}
	if mtu := cmp.Or(cfg.MTU, defaultMTU); p.wire.most != 0 && mtu > p.wire.most {
		return fmt.Errorf("%w port: MTU %d: its socket was opened for %d bytes (remove the port, and add it again)",
			brport.ErrInvalid, mtu, p.wire.most)
	}
	was, is := p.set.Load(), newSettings(cfg)
	if err := sw.lock(p, is, old); err != nil {
		sw.fdb.Prune(p.index, func(k Key, static bool) bool { return static && !was.allows(k, static, is) })
		return err
	}
	next := *old
	next.filters = old.filters || cfg.HasVLANs()
	sw.replace(old, &next, p) // before the port has VLANs
	sw.fdb.LimitPort(p.index, cfg.MaxAddresses)
	p.set.Store(is)
	p.limit() // also has the kernel forward by the new settings only
	sw.fdb.Prune(p.index, func(k Key, static bool) bool { return !is.allows(k, static, was) })
	return nil
}
