package watch

import (
	"bytes"
	"maps"
	"net"
	"slices"
	"sync"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/libvirthook/declared"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
)

// ports knows which settings the domains that run declare, and which taps have them already. A tap is known by its
// MAC, which libvirt makes of the guest's before it puts the tap on its bridge, so that the kernel's event of that says
// enough: nobody needs to be asked. That holds for the names that libvirt makes up. Whoever else holds a tap, such as one of
// qemu-bridge-helper's, can give it any MAC (SIOCSIFHWADDR in drivers/net/tun.c asks for no right), and with that would get into
// another guest's VLAN; but to name it takes CAP_NET_ADMIN. Of another name, libvirt must tell whose the tap is.
type ports struct {
	set    func(index int, mac net.HardwareAddr, cfg bridge.PortConfig) (changed bool, err error)
	report func(Report)

	mu      sync.Mutex
	domains map[domainxml.UUID]declaration
	byMAC   map[string][]claim // by the last five bytes of the guest's MAC
	done    map[int]string     // what a tap was given since it is a port, by interface index
}

// declaration is what one domain says.
type declaration struct {
	name string
	nics []declared.NIC
}

// claim is what a domain declares for one MAC.
type claim struct {
	domain string
	mac    net.HardwareAddr
	cfg    bridge.PortConfig
	target string // the tap's name, where libvirt has told it
}

func newPorts(set func(int, net.HardwareAddr, bridge.PortConfig) (bool, error), report func(Report)) *ports {
	return &ports{set: set, report: report, domains: map[domainxml.UUID]declaration{}, byMAC: map[string][]claim{}, done: map[int]string{}}
}

// declare replaces what a domain says; none forgets it.
func (p *ports) declare(dom libvirt.Domain, nics []declared.NIC) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.domains, dom.UUID); len(nics) > 0 {
		p.domains[dom.UUID] = declaration{dom.Name, nics}
	}
	p.index()
}

// keepDomains forgets all domains but these.
func (p *ports) keepDomains(running []libvirt.Domain) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.domains, func(uuid domainxml.UUID, _ declaration) bool {
		return !slices.ContainsFunc(running, func(d libvirt.Domain) bool { return d.UUID == uuid })
	})
	p.index()
}

func (p *ports) index() {
	clear(p.byMAC)
	for _, d := range p.domains {
		for _, n := range d.nics {
			key := string(n.MAC[1:])
			p.byMAC[key] = append(p.byMAC[key], claim{d.name, n.MAC, n.Port, n.Interface.Target})
		}
	}
}

// link looks at a tap that is new or was changed. One that is on no bridge has no settings, and gets them when it is
// put on one.
func (p *ports) link(l *rtnl.Link) {
	if l.Master == 0 {
		p.forget(l.Index)
		return
	}
	const hostMACByte = 0xfe // of virNetDevTapCreateInBridgePort
	if len(l.MAC) != 6 || l.MAC[0] != hostMACByte {
		return
	}
	if c, ok := p.claimOf(l.MAC); ok && (domainxml.GeneratedName(l.Name) || l.Name == c.target) {
		p.apply(l.Index, l.Name, c)
	}
}

// claimOf finds what is declared for a tap's MAC. Where domains do not agree on that, libvirt must tell whose the tap
// is, which it does a little later.
func (p *ports) claimOf(tap net.HardwareAddr) (c claim, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.byMAC[string(tap[1:])]
	if len(all) == 0 {
		return claim{}, false
	}
	for _, other := range all[1:] {
		if !other.cfg.Equal(all[0].cfg) {
			return claim{}, false
		}
	}
	return all[0], true
}

// declaredFor is how the port of a domain's interface should be, by what the domain declares and by what libvirt
// has words for itself.
func (p *ports) declaredFor(dom domainxml.UUID, x domainxml.Interface) bridge.PortConfig {
	p.mu.Lock()
	defer p.mu.Unlock()
	var cfg bridge.PortConfig
	for _, n := range p.domains[dom].nics {
		if bytes.Equal(n.MAC, x.MAC) {
			cfg = n.Port
		}
	}
	cfg.Isolated = cfg.Isolated || x.Isolated
	return cfg
}

// apply gives a port its settings, unless it was given them.
func (p *ports) apply(index int, name string, c claim) {
	if !p.begin(index, c.cfg.String()) {
		return
	}
	changed, err := p.set(index, c.mac, c.cfg)
	if isGone(err) {
		p.forget(index)
		return
	}
	if changed || err != nil {
		p.report(Report{Text: "port set to " + c.cfg.String(), Guest: c.domain, NIC: c.mac.String(), Interface: name, Err: err})
	}
}

// begin notes what is done to a tap; false where that was done before.
func (p *ports) begin(index int, what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, known := p.done[index]
	p.done[index] = what
	return !known || before != what
}

func (p *ports) forget(index int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.done, index)
}

// keep forgets all links but these.
func (p *ports) keep(there map[int]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.done, func(index int, _ string) bool { return !there[index] })
}
