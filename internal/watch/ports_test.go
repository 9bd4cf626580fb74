package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/libvirthook/declared"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
)

func guestMAC(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, last} }

func tapMAC(last byte) net.HardwareAddr { return net.HardwareAddr{0xfe, 0x54, 0, 0, 0, last} }

var isolated = brport.Settings{Isolated: true}

// recorded is a ports whose kernel is a list; it returns err.
func recorded(err *error) (p *ports, set *[]string, reports *[]Report) {
	set, reports = &[]string{}, &[]Report{}
	p = newPorts(func(index int, mac net.HardwareAddr, cfg brport.Settings) (bool, error) {
		*set = append(*set, fmt.Sprint(index, mac, cfg))
		return *err == nil, *err
	}, func(r Report) { *reports = append(*reports, r) })
	return p, set, reports
}

func domain(n byte) libvirt.Domain {
	return libvirt.Domain{Name: fmt.Sprint("web", n), UUID: domainxml.UUID{n}}
}

func nics(cfg brport.Settings, macs ...net.HardwareAddr) (all []declared.NIC) {
	for _, mac := range macs {
		all = append(all, declared.NIC{MAC: mac, Port: cfg})
	}
	return all
}

func tap(index int, mac net.HardwareAddr, master int) *rtnl.Link {
	return &rtnl.Link{
		Index: index, Name: fmt.Sprint("vnet", index), MAC: mac, Master: master,
		Tun: &rtnl.Tun{Tap: true},
	}
}

func TestPortsAreSetOnceForAsLongAsTheyArePorts(t *testing.T) {
	var none error
	p, set, reports := recorded(&none)
	p.declare(domain(1), nics(isolated, guestMAC(1)))
	for _, step := range []struct {
		what string
		link *rtnl.Link
		sets bool
	}{
		{"another's", tap(8, tapMAC(2), 3), false},
		{"no tap's MAC", tap(8, guestMAC(1), 3), false},
		{"a MAC of no Ethernet", tap(8, tapMAC(1)[:5], 3), false},
		{"not on a bridge yet", tap(7, tapMAC(1), 0), false},
		{"on a bridge", tap(7, tapMAC(1), 3), true},
		{"again", tap(7, tapMAC(1), 3), false},
		{"taken off", tap(7, tapMAC(1), 0), false},
		{"put back", tap(7, tapMAC(1), 4), true},
		{"a second tap", tap(9, tapMAC(1), 4), true},
	} {
		before := len(*set)
		p.link(step.link)
		if got := len(*set) > before; got != step.sets {
			t.Errorf("%s: set is %v, want %v", step.what, got, step.sets)
		}
	}
	if want := "7 52:54:00:00:00:01 isolated"; (*set)[0] != want {
		t.Errorf("set %q, want %q", (*set)[0], want)
	}
	want := Report{Text: "port set to isolated", Guest: "web1", NIC: "52:54:00:00:00:01", Interface: "vnet7"}
	if len(*reports) != 3 || (*reports)[0] != want {
		t.Errorf("reports %+v", *reports)
	}
	p.keep(map[int]bool{9: true})
	if len(p.done) != 1 {
		t.Errorf("links that are gone are remembered: %v", p.done)
	}
}

func TestPortsThatCannotBeSet(t *testing.T) {
	err := errors.New("no")
	p, set, reports := recorded(&err)
	p.declare(domain(1), nics(isolated, guestMAC(1)))
	for range 3 {
		p.link(tap(7, tapMAC(1), 3))
	}
	if len(*set) != 1 || len(*reports) != 1 || (*reports)[0].Err == nil {
		t.Errorf("tried %d times, reports %+v", len(*set), *reports)
	}
	err = fs.ErrNotExist // it was quicker
	p.link(tap(8, tapMAC(1), 3))
	p.link(tap(8, tapMAC(1), 3))
	if len(*set) != 3 || len(*reports) != 1 || len(p.done) != 1 {
		t.Errorf("tried %d times, reports %+v, done %v", len(*set), *reports, p.done)
	}
}

func TestPortsFollowWhatIsDeclared(t *testing.T) {
	var none error
	p, set, _ := recorded(&none)
	link := func(want bool) {
		t.Helper()
		before := len(*set)
		p.link(tap(7, tapMAC(1), 3))
		if got := len(*set) > before; got != want {
			t.Errorf("set is %v, want %v", got, want)
		}
	}
	link(false)
	p.declare(domain(1), nics(isolated, guestMAC(1), guestMAC(2)))
	link(true)
	p.declare(domain(1), nics(brport.Settings{VLAN: 20}, guestMAC(1)))
	link(true)
	p.declare(domain(2), nics(brport.Settings{VLAN: 20}, guestMAC(1)))
	link(false) // they agree
	p.declare(domain(2), nics(isolated, guestMAC(1)))
	p.forget(7)
	link(false) // they do not
	p.keepDomains([]libvirt.Domain{domain(2)})
	link(true)
	p.declare(domain(2), nil)
	p.forget(7)
	link(false)
	if len(p.byMAC) != 0 || len(p.domains) != 0 {
		t.Errorf("remembered: %v, %v", p.domains, p.byMAC)
	}
}

// A user who holds a tap of qemu-bridge-helper sets its MAC to a guest's.
func TestPortsOfStrangersAreLeftAlone(t *testing.T) {
	var none error
	p, set, _ := recorded(&none)
	all := nics(brport.Settings{VLAN: 20}, guestMAC(1))
	p.declare(domain(1), all)
	named := tap(7, tapMAC(1), 3)
	named.Name = "tap7"
	p.link(named)
	if len(*set) != 0 {
		t.Errorf("a stranger's tap was set: %v", *set)
	}
	all[0].Interface.Target = "tap7" // libvirt says that it is the guest's
	p.declare(domain(1), all)
	p.link(named)
	if len(*set) != 1 {
		t.Errorf("the guest's tap was not set: %v", *set)
	}
}

func TestDeclaredForAnInterface(t *testing.T) {
	p := newPorts(nil, nil)
	p.declare(domain(1), nics(brport.Settings{VLAN: 20}, guestMAC(1)))
	for _, test := range []struct {
		dom  byte
		x    domainxml.Interface
		want brport.Settings
	}{
		{1, domainxml.Interface{MAC: guestMAC(1)}, brport.Settings{VLAN: 20}},
		{1, domainxml.Interface{MAC: guestMAC(1), Isolated: true}, brport.Settings{VLAN: 20, Isolated: true}},
		{1, domainxml.Interface{MAC: guestMAC(2), Isolated: true}, isolated},
		{2, domainxml.Interface{MAC: guestMAC(1)}, brport.Settings{}},
	} {
		if got := p.declaredFor(domainxml.UUID{test.dom}, test.x); !got.Equal(test.want) {
			t.Errorf("%+v of domain %d: %q, want %q", test.x, test.dom, got, test.want)
		}
	}
}

func TestEventsReachTheirPart(t *testing.T) {
	var none error
	w := &watcher{}
	var set *[]string
	w.ports, set, _ = recorded(&none)
	w.bridges, w.mirrors, w.macs = newBridges(nil), newMirrors(w, nil), newAddresses(nil, nil)
	w.routes = newRoutes(nil)
	w.ports.declare(domain(1), nics(isolated, guestMAC(1)))
	w.event(rtnl.Event{Link: &rtnl.Link{Index: 3, Name: "br0", Bridge: &rtnl.Bridge{}}})
	w.event(rtnl.Event{Link: tap(7, tapMAC(1), 3)})
	if len(w.bridges.known) != 1 || len(*set) != 1 || w.mirrors.dirty.Load() {
		t.Errorf("bridges %v, set %v, looks for macvtaps: %v", w.bridges.known, *set, w.mirrors.dirty.Load())
	}
	w.event(rtnl.Event{Link: &rtnl.Link{Index: 2, Name: "eth0"}})
	if !w.mirrors.dirty.Load() {
		t.Error("macvtaps are not looked for where something has changed on a parent device")
	}
	for _, l := range []*rtnl.Link{{Index: 3, Name: "br0", Bridge: &rtnl.Bridge{}}, tap(7, tapMAC(1), 3)} {
		w.event(rtnl.Event{Link: l, Gone: true})
	}
	if len(w.bridges.known) != 0 || len(w.bridges.due) != 0 || len(w.ports.done) != 0 {
		t.Errorf("remembered: %v, %v, %v", w.bridges.known, w.bridges.due, w.ports.done)
	}
}
