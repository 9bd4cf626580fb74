package bpfguard

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net"
	"net/netip"

	"vmnet/bridge/portsec"
)

// settingsOf returns the Config as the program has it. Addresses are in network byte order on all
// machines.
func settingsOf(cfg portsec.Config) guardSettings {
	s := guardSettings{Checks: uint32(cfg.Checks)}
	copy(s.Mac[:], cfg.MAC)
	if len(cfg.IPs) > 0 {
		s.Known = 1
	}
	for i, t := range cfg.EtherTypes {
		s.Type[i] = network16(uint16(t))
		s.Types++
	}
	for _, p := range cfg.Own() {
		if p.Addr().Is4() {
			b := p.Addr().As4()
			r := &s.V4[s.V4s]
			r.Addr = binary.NativeEndian.Uint32(b[:])
			r.Mask = network32(math.MaxUint32 << (32 - p.Bits()))
			s.V4s++
			continue
		}
		b := p.Addr().As16()
		r := &s.V6[s.V6s]
		r.Hi, r.Lo = binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:])
		r.MaskHi = network64(math.MaxUint64 << (64 - min(p.Bits(), 64)))
		r.MaskLo = network64(math.MaxUint64 << (64 - max(p.Bits()-64, 0)))
		s.V6s++
	}
	return s
}

// config returns the Config of which settingsOf has made s, with the link-local address among the
// others. Counts in a program that this package has not made are limited to what the arrays have
// room for.
func (s *guardSettings) config() portsec.Config {
	cfg := portsec.Config{Checks: portsec.Checks(s.Checks)}
	if s.Mac != [8]byte{} {
		cfg.MAC = net.HardwareAddr(s.Mac[:6])
	}
	for _, r := range s.V4[:min(int(s.V4s), len(s.V4))] {
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], r.Addr)
		cfg.IPs = append(cfg.IPs, netip.PrefixFrom(netip.AddrFrom4(b), bits.OnesCount32(r.Mask)))
	}
	for _, r := range s.V6[:min(int(s.V6s), len(s.V6))] {
		var b [16]byte
		binary.NativeEndian.PutUint64(b[:], r.Hi)
		binary.NativeEndian.PutUint64(b[8:], r.Lo)
		n := bits.OnesCount64(r.MaskHi) + bits.OnesCount64(r.MaskLo)
		cfg.IPs = append(cfg.IPs, netip.PrefixFrom(netip.AddrFrom16(b), n))
	}
	for _, t := range s.Type[:min(int(s.Types), len(s.Type))] {
		cfg.EtherTypes = append(cfg.EtherTypes, portsec.EtherType(network16(t)))
	}
	return cfg
}

// The functions network* convert a number to one whose bytes in memory are in network byte order,
// and back.

func network16(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

func network32(n uint32) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, n))
}

func network64(n uint64) uint64 {
	return binary.NativeEndian.Uint64(binary.BigEndian.AppendUint64(nil, n))
}
