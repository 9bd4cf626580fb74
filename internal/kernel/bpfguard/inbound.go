package bpfguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/clsact"
	"vmnet/internal/kernel/rtnl"
)

// askedFilter and inboundFilter are the places of the two filters of inbound.c. The first one comes
// after port security and rates: what those drop asks for nothing.
var (
	askedFilter   = rtnl.Filter{Priority: 3, Handle: 1, Kind: "bpf", Name: inboundProgVmnetAsked}
	inboundFilter = rtnl.Filter{Priority: 1, Handle: 1, Kind: "bpf", Name: inboundProgVmnetInbound}
)

// inboundObject is the compiled program, parsed once. Its users copy it.
var inboundObject = sync.OnceValues(loadInbound)

// inboundKept are the maps with which a new program continues.
var inboundKept = []string{inboundMapFlows, inboundMapFragments, inboundMapRefused, inboundMapCaptures}

// opposite returns where frames for the guest pass.
func opposite(h rtnl.Hook) rtnl.Hook {
	if h == rtnl.Ingress {
		return rtnl.Egress
	}
	return rtnl.Ingress
}

// InboundState is what the kernel does at a link.
type InboundState struct {
	inbound.Config
	Current bool   // the programs are those of this build
	Dropped uint64 // frames, since the first AllowIn
}

// Is reports whether the state is that of cfg, by the programs of this build.
func (s InboundState) Is(cfg inbound.Config) bool {
	return s.Config.Equal(cfg) && (cfg.IsZero() || s.Current)
}

// AllowIn lets only answers and what cfg allows reach the guest behind a link from now on. c is a
// socket in the link's netns. If the link has the filters already, AllowIn replaces their programs,
// which continue with the flows that the guest has begun. The zero value removes them. It is atomic
// as Attach is, for each of the two directions; the filter of the guest's own frames comes first,
// so that no question goes unnoticed.
func AllowIn(c *rtnl.Conn, l *rtnl.Link, cfg inbound.Config) error {
	if err := allowIn(c, l, cfg); err != nil {
		return fmt.Errorf("filter what comes in to the guest of %s: %w", l.Name, err)
	}
	return nil
}

func allowIn(c *rtnl.Conn, l *rtnl.Link, cfg inbound.Config) error {
	if cfg.IsZero() {
		return letAllIn(c, l)
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	old, err := findInbound(c, l)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if old != nil {
		defer old.Close()
	}
	p, err := loadFilters(cfg, old)
	if err != nil {
		return err
	}
	defer p.Close()
	from := hookOf(l)
	err = clsact.Set(c, l, from, askedFilter, p.VmnetAsked.FD(), inwards.explainFilter)
	if err == nil {
		err = clsact.Set(c, l, opposite(from), inboundFilter, p.VmnetInbound.FD(), inwards.explainFilter)
	}
	if err != nil && old == nil {
		return errors.Join(err, letAllIn(c, l))
	}
	return err
}

func loadFilters(cfg inbound.Config, old *loaded) (p inboundPrograms, err error) {
	err = inwards.load(inboundObject, inboundVarConfig, inboundSettingsOf(cfg), old.replacements(inboundKept...), &p)
	return p, err
}

// ProbeInbound returns an error if this process cannot load the programs for cfg. It leaves nothing
// loaded.
func ProbeInbound(cfg inbound.Config) error {
	if cfg.IsZero() {
		return nil
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	p, err := loadFilters(cfg, nil)
	if err != nil {
		return err
	}
	return p.Close()
}

// letAllIn removes the filters, first the one that drops frames, and the clsact qdisc if it has no
// others.
func letAllIn(c *rtnl.Conn, l *rtnl.Link) error {
	from := hookOf(l)
	for _, f := range []struct {
		hook   rtnl.Hook
		filter rtnl.Filter
	}{{opposite(from), inboundFilter}, {from, askedFilter}} {
		found, err := clsact.Find(c, l.Index, f.hook, is(f.filter))
		if err == nil && found != nil {
			err = clsact.Delete(c, l.Index, f.hook, *found)
		}
		if err != nil {
			return err
		}
	}
	return tidy(c, l)
}

// is returns a function that recognizes a filter of ours.
func is(ours rtnl.Filter) func(rtnl.Filter) bool {
	return func(f rtnl.Filter) bool {
		return f.Kind == ours.Kind && f.Name == ours.Name && f.Priority == ours.Priority
	}
}

// ReadInbound reads what the kernel lets in at a link. If it lets everything in, the error matches
// fs.ErrNotExist with errors.Is. It needs CAP_SYS_ADMIN.
func ReadInbound(c *rtnl.Conn, l *rtnl.Link) (s InboundState, err error) {
	p, err := findInbound(c, l)
	if err == nil {
		defer p.Close()
		var settings inboundSettings
		var dropped [1]uint64
		err = errors.Join(p.settings(&settings), p.count(inboundMapRefused, dropped[:]))
		s = InboundState{settings.config(), p.current, dropped[0]}
	}
	if err != nil {
		return InboundState{}, fmt.Errorf("read what comes in to the guest of %s: %w", l.Name, err)
	}
	return s, nil
}

// findInbound opens the program that drops frames. If the link lacks one of the two filters, or
// they do not belong together, the error matches fs.ErrNotExist with errors.Is.
func findInbound(c *rtnl.Conn, l *rtnl.Link) (*loaded, error) {
	spec, err := inboundObject()
	if err != nil {
		return nil, err
	}
	from := hookOf(l)
	asked, err := inwards.find(c, l.Index, from, is(askedFilter), spec, inboundProgVmnetAsked,
		configMap, inboundMapFlows)
	if err != nil {
		return nil, err
	}
	defer asked.Close()
	maps := append([]string{configMap}, inboundKept...)
	p, err := inwards.find(c, l.Index, opposite(from), is(inboundFilter), spec, inboundProgVmnetInbound, maps...)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{configMap, inboundMapFlows} {
		if !sameMap(asked.maps[name], p.maps[name]) {
			p.Close()
			return nil, fmt.Errorf("the two filters do not belong together: %w", fs.ErrNotExist)
		}
	}
	p.current = p.current && asked.current
	return p, nil
}

func sameMap(a, b *ebpf.Map) bool {
	x, errX := a.Info()
	y, errY := b.Info()
	if errX != nil || errY != nil {
		return false
	}
	m, ok := x.ID()
	n, okN := y.ID()
	return ok && okN && m == n
}

// protocols are the numbers of IP's protocols; that of ICMP stands for echo requests of both
// families, and 0 for all.
var protocols = map[inbound.Protocol]uint8{inbound.TCP: 6, inbound.UDP: 17, inbound.ICMP: 1, inbound.Any: 0}

// noProtocol is the number of a rule that lets nothing in.
const noProtocol = 254 // reserved for experiments (RFC 3692)

// inboundSettingsOf returns cfg as the programs have it.
func inboundSettingsOf(cfg inbound.Config) inboundSettings {
	var s inboundSettings
	for n, t := range slices.Sorted(slices.Values(cfg.EtherTypes)) {
		s.Type[n] = network16(uint16(t))
		s.Types++
	}
	for _, r := range cfg.Rules.Sorted() {
		to := &s.Rule[s.Rules]
		s.Rules++
		to.First, to.Last = r.First, r.Last
		if r.First == 0 {
			to.Last = math.MaxUint16
		}
		number, known := protocols[r.Protocol]
		to.Protocol = number
		if !known { // inbound.Answers
			to.Protocol = noProtocol
			to.First, to.Last = 1, 0
		}
		if !r.From.IsValid() {
			continue
		}
		ones := r.From.Bits()
		to.Family = 6
		if r.From.Addr().Is4() {
			to.Family = 4
			ones += 96
		}
		addr, mask := r.From.Addr().As16(), net.CIDRMask(ones, 128)
		for n := range to.From {
			to.From[n] = binary.NativeEndian.Uint32(addr[4*n:])
			to.Mask[n] = binary.NativeEndian.Uint32(mask[4*n:])
		}
	}
	return s
}

// config returns the Config of which inboundSettingsOf has made s. Counts in a program that this
// package has not made are limited to what the arrays have room for.
func (s *inboundSettings) config() (cfg inbound.Config) {
	for _, t := range s.Type[:min(int(s.Types), len(s.Type))] {
		cfg.EtherTypes = append(cfg.EtherTypes, portsec.EtherType(network16(t)))
	}
	for _, from := range s.Rule[:min(int(s.Rules), len(s.Rule))] {
		r := inbound.Rule{Protocol: inbound.Answers}
		for p, number := range protocols {
			if number == from.Protocol {
				r.Protocol = p
			}
		}
		if r.Protocol == inbound.TCP || r.Protocol == inbound.UDP {
			r.First, r.Last = from.First, from.Last
		}
		var addr [16]byte
		ones := 0
		for n := range from.From {
			binary.NativeEndian.PutUint32(addr[4*n:], from.From[n])
			ones += bits.OnesCount32(from.Mask[n])
		}
		switch from.Family {
		case 4:
			r.From = netip.PrefixFrom(netip.AddrFrom16(addr).Unmap(), max(ones-96, 0))
		case 6:
			r.From = netip.PrefixFrom(netip.AddrFrom16(addr), ones)
		}
		cfg.Rules = append(cfg.Rules, r)
	}
	return cfg
}
