package addresses

import (
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// A host is the links of a namespace at one time.
type host struct {
	links   []*rtnl.Link
	byName  map[string]*rtnl.Link
	byIndex map[int]*rtnl.Link
}

func newHost(links []*rtnl.Link) *host {
	h := &host{links: links, byName: map[string]*rtnl.Link{}, byIndex: map[int]*rtnl.Link{}}
	for _, l := range links {
		h.byName[l.Name], h.byIndex[l.Index] = l, l
	}
	return h
}

// maxDepth bounds how many links are followed from one to its parent device.
const maxDepth = 4

// leads reports whether frames that leave by a link arrive at the link place: it is that link, or
// on it as a VLAN or macvlan is.
func (h *host) leads(link, place int) bool {
	for range maxDepth {
		if link == place {
			return true
		}
		l := h.byIndex[link]
		if l == nil || l.Lower == 0 || l.LowerNS != rtnl.OwnNS {
			return false
		}
		link = l.Lower
	}
	return false
}

// placeOf returns the index of the link at which a NIC's neighbours are: its bridge, parent device
// or tap. It returns 0 for a NIC on a userspace switch, which may be connected to any link.
func (h *host) placeOf(n *nic.NIC) int {
	name := n.Source
	switch {
	case n.Switch:
		return 0
	case n.Type == nic.TypeRouted:
		name = n.Interface
	}
	if l := h.byName[name]; l != nil {
		return l.Index
	}
	return -1
}

// neighbours adds what the kernel knows of the NICs' MACs, in the own namespace and in those that
// have the other ends of the bridges' veth ports, such as a router's.
func (s *Sources) neighbours(h *host, nics []nic.NIC, books []book, byMAC map[string][]int) (notices []string) {
	all, err := s.NL.Neighbours()
	if err != nil {
		return []string{err.Error()}
	}
	for _, n := range all {
		for _, i := range byMAC[n.MAC.String()] {
			if place := h.placeOf(&nics[i]); place == 0 || h.leads(n.Link, place) {
				books[i].add(Neighbour, n.Addr)
			}
		}
	}
	places := map[int]bool{}
	for i := range nics {
		if place := h.placeOf(&nics[i]); place > 0 {
			places[place] = true
		}
	}
	far := map[int]map[int]int{} // the place of a link, by its namespace's id and index
	for _, l := range h.links {
		if l.Kind == "veth" && l.LowerNS >= 0 && places[l.Master] {
			if far[l.LowerNS] == nil {
				far[l.LowerNS] = map[int]int{}
			}
			far[l.LowerNS][l.Lower] = l.Master
		}
	}
	s.eachNamed(far, func(nl *rtnl.Conn, links map[int]int) {
		there, err := nl.Neighbours()
		if err != nil {
			notices = append(notices, err.Error())
		}
		for _, n := range there {
			for _, i := range byMAC[n.MAC.String()] {
				if place, ok := links[n.Link]; ok && place == h.placeOf(&nics[i]) {
					books[i].add(Neighbour, n.Addr)
				}
			}
		}
	})
	return notices
}

// maxSpaces bounds how many named namespaces are opened.
const maxSpaces = 64

// eachNamed calls f for the namespaces among wanted that have a name (ip-netns(8)), with a socket
// there. One that cannot be opened is left out.
func (s *Sources) eachNamed(wanted map[int]map[int]int, f func(nl *rtnl.Conn, links map[int]int)) {
	if len(wanted) == 0 {
		return
	}
	for _, name := range netns.Named(maxSpaces) {
		s.inNamed(name.Name, wanted, f)
	}
}

func (s *Sources) inNamed(name string, wanted map[int]map[int]int, f func(nl *rtnl.Conn, links map[int]int)) {
	ns, err := netns.Open(name)
	if err != nil {
		return
	}
	defer ns.Close()
	id, err := s.NL.NetnsID(ns)
	if err != nil || wanted[id] == nil {
		return
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		return
	}
	defer nl.Close()
	f(nl, wanted[id])
}
