package config

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
)

// Taken is a range of addresses that something else uses.
type Taken struct {
	Prefix netip.Prefix
	Owner  string // for people: "route by wg0 (wireguard)", "network lan"
}

// Routes to half of all addresses and the like stand for a default route, as VPNs make them
// (0.0.0.0/1 and 128.0.0.0/1, 2000::/3). Every network overlaps those.
const leastBits = 7

// Overlap returns the first of taken that shares addresses with p.
func Overlap(p netip.Prefix, taken []Taken) (Taken, bool) {
	for _, t := range taken {
		if t.Prefix.Bits() >= leastBits && t.Prefix.Overlaps(p) {
			return t, true
		}
	}
	return Taken{}, false
}

// ErrOverlap is the error for a subnet that something else uses.
var ErrOverlap = errors.New("the subnet is taken")

// CheckFree returns an error that names who has addresses of n, or nil.
func (n *Network) CheckFree(taken []Taken) error {
	for _, p := range n.Prefixes() {
		if t, ok := Overlap(p, taken); ok {
			return fmt.Errorf("network %s: %w: %s overlaps %s of %s (choose another one with --subnet or --ipv6)",
				n.Name, ErrOverlap, p, t.Prefix, t.Owner)
		}
	}
	return nil
}

// pools are where FreeSubnet looks, a /24 at a time: first where few others look.
var pools = []netip.Prefix{
	netip.MustParsePrefix("10.66.0.0/16"), netip.MustParsePrefix("172.29.0.0/16"),
	netip.MustParsePrefix("192.168.128.0/17"), netip.MustParsePrefix("10.200.0.0/13"),
}

// FreeSubnet returns a /24 that nothing uses.
func FreeSubnet(taken []Taken) (netip.Prefix, error) {
	const bits, size = 24, 256
	for _, pool := range pools {
		for i := uint32(0); i < 1<<(bits-pool.Bits()); i++ {
			p := netip.PrefixFrom(at(pool, i*size).Addr(), bits)
			if _, ok := Overlap(p, taken); !ok {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("network: no free /24 in %v (choose a subnet with --subnet)", pools)
}

// FreeIPv6 returns a /64 of unique local addresses with a random global id (RFC 4193) that nothing
// uses.
func FreeIPv6(taken []Taken) (netip.Prefix, error) {
	for range 100 {
		var a [16]byte
		if _, err := rand.Read(a[1:6]); err != nil {
			return netip.Prefix{}, fmt.Errorf("choose an IPv6 network: %w", err)
		}
		a[0] = 0xfd
		p := netip.PrefixFrom(netip.AddrFrom16(a), ipv6Bits)
		if _, ok := Overlap(p, taken); !ok {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New(
		"network: all of fd00::/8 is taken (choose a network with --ipv6, or --ipv6 none)",
	)
}
