package watch

import (
	"bytes"
	"maps"
	"net"
	"slices"
	"sync"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/libvirthook/declared"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
)

// ports knows the settings that the running domains declare, and the taps that have them already. A
// tap is known by its MAC, which libvirt makes of the guest's before it puts the tap on its bridge.
// So the kernel's event is enough, and nothing needs to be asked. That holds for the names that
// libvirt chooses. A process that holds another tap, such as one of qemu-bridge-helper, can give it
// any MAC (SIOCSIFHWADDR in drivers/net/tun.c needs no privilege), and would thus get into another
// guest's VLAN; but renaming the tap takes CAP_NET_ADMIN. For a tap of another name, libvirt must
// say whose it is.
type ports struct {
	set    func(index int, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error)
	report func(Report)

	mu      sync.Mutex
	domains map[domainxml.UUID]declaration
	byMAC   map[string][]claim // by the last five bytes of the guest's MAC
	done    map[int]string     // settings that a tap was given since it became a port, by interface index
}

// declaration is the declaration of one domain.
type declaration struct {
	name string
	nics []declared.NIC
}

// claim is a domain's declaration for one MAC.
type claim struct {
	domain string
	mac    net.HardwareAddr
	cfg    brport.Settings
	target string // the tap's name, if libvirt has reported it
}

func newPorts(set func(int, net.HardwareAddr, brport.Settings) (bool, error), report func(Report)) *ports {
	return &ports{
		set: set, report: report, domains: map[domainxml.UUID]declaration{}, byMAC: map[string][]claim{},
		done: map[int]string{},
	}
}

// declare replaces a domain's declaration; without NICs it forgets the domain.
func (p *ports) declare(dom libvirt.Domain, nics []declared.NIC) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.domains, dom.UUID); len(nics) > 0 {
		p.domains[dom.UUID] = declaration{dom.Name, nics}
	}
	p.index()
}

// keepDomains forgets all domains except these.
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

// link checks a tap that is new or was changed. A tap without a bridge has no settings, and gets
// them when it is put on one.
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

// claimOf finds the declaration for a tap's MAC. If domains disagree about it, libvirt must say
// whose the tap is, which it does a little later.
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

// declaredFor returns the settings for the port of a domain's interface, from the domain's
// declaration and from libvirt's own settings.
func (p *ports) declaredFor(dom domainxml.UUID, x domainxml.Interface) brport.Settings {
	p.mu.Lock()
	defer p.mu.Unlock()
	var cfg brport.Settings
	for _, n := range p.domains[dom].nics {
		if bytes.Equal(n.MAC, x.MAC) {
			cfg = n.Port
		}
	}
	cfg.Isolated = cfg.Isolated || x.Isolated
	return cfg
}

// apply gives a port its settings, unless it has them already.
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
		p.report(Report{
			Text: "port set to " + c.cfg.String(), Guest: c.domain, NIC: c.mac.String(),
			Interface: name, Err: err,
		})
	}
}

// begin records a change to a tap, and reports whether it is a new one.
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

// keep forgets all links except these.
func (p *ports) keep(there map[int]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.done, func(index int, _ string) bool { return !there[index] })
}
