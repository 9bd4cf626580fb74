// Package addresses finds the IP addresses that guests' NICs have, and says from where each is
// known. A guest may claim any address to a neighbour or by its agent: what is found is for people,
// and decides nothing.
package addresses

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/agent"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// Where an address is known from.
const (
	Routed       = "routed"        // the host routes it to the NIC
	PortSecurity = "port security" // the only ones that the guest may use
	Configured   = "configured"    // the NIC was given it with --ip
	Lease        = "lease"         // a DHCP server has given it
	Neighbour    = "neighbour"     // the NIC has answered with it, or used it
	Agent        = "agent"         // the guest's agent says so
)

// MaxOfNIC bounds how many addresses of one NIC are kept.
const MaxOfNIC = 32

// Sources are where addresses are looked up.
type Sources struct {
	NS *netns.NS
	NL *rtnl.Conn // in NS
	// States are the directories with the networks' lease files.
	States []string
	// Libvirt is the directory with libvirt's lease files; empty for none.
	Libvirt string
	// Patience bounds how long all guests' agents together are waited for; 0 asks none.
	Patience time.Duration
}

// LibvirtState is where libvirt's networks keep their leases (virNetworkDriverLeaseFileName in
// libvirt's src/network/leaseshelper.c).
const LibvirtState = "/var/lib/libvirt/dnsmasq"

// Of returns the addresses of each of the NICs, in their order, and notices about sources that
// could not be read.
func (s *Sources) Of(ctx context.Context, nics []nic.NIC) (found [][]nic.Address, notices []string) {
	books := make([]book, len(nics))
	for i := range nics {
		books[i].configured(&nics[i])
	}
	byMAC := map[string][]int{}
	for i := range nics {
		if nics[i].MAC != "" {
			byMAC[nics[i].MAC] = append(byMAC[nics[i].MAC], i)
		}
	}
	asked := s.askAgents(ctx, nics)
	links, err := s.NL.Links("", 0)
	if err == nil {
		h := newHost(links)
		notices = s.leases(h, nics, books, byMAC)
		notices = append(notices, s.neighbours(h, nics, books, byMAC)...)
	} else {
		notices = append(notices, err.Error())
	}
	for pid, interfaces := range asked() {
		for _, one := range interfaces {
			for _, i := range byMAC[one.MAC] {
				if nics[i].PID == pid {
					books[i].add(Agent, one.Addrs...)
				}
			}
		}
	}
	for i := range books {
		found = append(found, books[i].sorted())
	}
	return found, notices
}

// maxAsked is how many agents are asked at a time.
const maxAsked = 64

// askAgents begins to ask the agents of the NICs' guests. The result waits for what they said, by
// their VMMs' pids. An agent that does not answer is no news.
func (s *Sources) askAgents(ctx context.Context, nics []nic.NIC) func() map[int][]agent.Interface {
	said := map[int][]agent.Interface{}
	if s.Patience <= 0 {
		return func() map[int][]agent.Interface { return said }
	}
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, maxAsked)
	asked := map[int]bool{0: true}
	for i := range nics {
		pid := nics[i].PID
		if asked[pid] {
			continue
		}
		asked[pid] = true
		p, err := qemu.ByPID(pid)
		if err != nil || p.Agent == "" {
			continue
		}
		all.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				return
			}
			if interfaces, err := agent.Interfaces(ctx, p); err == nil {
				mu.Lock()
				defer mu.Unlock()
				said[pid] = interfaces
			}
		})
	}
	return func() map[int][]agent.Interface {
		all.Wait()
		cancel()
		return said
	}
}

// A book has the addresses of one NIC.
type book struct{ from map[netip.Addr][]string }

func (b *book) add(source string, addrs ...netip.Addr) {
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		if b.from == nil {
			b.from = map[netip.Addr][]string{}
		}
		known, ok := b.from[a]
		if !ok && len(b.from) >= MaxOfNIC || slices.Contains(known, source) {
			continue
		}
		b.from[a] = append(known, source)
	}
}

// configured adds the addresses that the NIC's record has.
func (b *book) configured(n *nic.NIC) {
	source := Configured
	switch {
	case n.Type == nic.TypeRouted:
		source = Routed
	case n.PortSecurity != "":
		source = PortSecurity
	}
	b.add(source, n.IP...)
}

// sorted returns the addresses, IPv4 first and link-local ones last.
func (b *book) sorted() []nic.Address {
	all := []nic.Address{}
	for a, from := range b.from {
		all = append(all, nic.Address{IP: a, From: from})
	}
	rank := func(a netip.Addr) int {
		switch {
		case a.IsLinkLocalUnicast():
			return 2
		case a.Is6():
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(a, b nic.Address) int {
		return cmp.Or(cmp.Compare(rank(a.IP), rank(b.IP)), a.IP.Compare(b.IP))
	})
	return all
}
