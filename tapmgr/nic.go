package tapmgr

import (
	"slices"
	"strings"

	"vmnet/internal/rtnl"
)

// NIC is one NIC of a guest as it is. Its JSON keys are stable.
type NIC struct {
	VM        string `json:"vm"`
	ID        string `json:"nic"`
	Interface string `json:"interface"`
	Type      string `json:"type"`   // "tap"
	Source    string `json:"source"` // the bridge that it belongs on
	Model     string `json:"model"`
	MAC       string `json:"mac"` // the guest's
	Queues    int    `json:"queues"`
	Vhost     string `json:"vhost"` // "on" or "off"
	State     State  `json:"state"`
	MTU       int    `json:"mtu"`           // bytes, as the guest was told; 1500 where it was told nothing
	PID       int    `json:"pid,omitempty"` // of the process that holds it; 0 where none is seen
}

// State says in one word how a NIC is: its bridge port's state, or what keeps
// it from having one.
type State string

// States besides those of a bridge port.
const (
	Attaching  State = "attaching"  // a vmnet works on it
	Detaching  State = "detaching"  // the guest was asked to let go of it
	Incomplete State = "incomplete" // an attach was cut short: vmnet reconcile
	LeftOver   State = "left-over"  // nobody holds it: vmnet reconcile
	NoBridge   State = "no-bridge"  // it is on none
	Down       State = "down"
)

// TypeTap is the only type of NIC so far.
const TypeTap = "tap"

// List returns the NICs of all guests, or of one where vm is not empty, by
// guest and id. It opens no monitor, so it never waits for anybody.
func (m *Manager) List(vm string) ([]NIC, error) {
	links, held, err := m.inventory()
	if err != nil {
		return nil, err
	}
	nics := []NIC{}
	for _, o := range links {
		if vm == "" || o.want.VM == vm {
			nics = append(nics, describe(o, held))
		}
	}
	return nics, nil
}

// inventory reads our links, by guest and id, and who holds them.
func (m *Manager) inventory() ([]ours, *holders, error) {
	// The holders first: who lets go of a tap between the two takes its link away too.
	held, err := m.holders()
	if err != nil {
		return nil, nil, err
	}
	links, err := m.links()
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(links, func(a, b ours) int {
		if c := strings.Compare(a.want.VM, b.want.VM); c != 0 {
			return c
		}
		return strings.Compare(a.want.NIC, b.want.NIC)
	})
	return links, held, nil
}

// describe tells how a link of ours is. held may be nil where it is known that
// its guest holds it.
func describe(o ours, held *holders) NIC {
	r := o.want
	nic := NIC{
		VM: r.VM, ID: r.NIC, Interface: o.Name, Type: TypeTap, Source: r.Bridge, Model: r.Model,
		MAC: r.MAC.String(), Queues: r.Queues, Vhost: onOff(r.Vhost), MTU: r.guestMTU(), State: portState(o.Link),
	}
	if held == nil {
		return nic
	}
	if h := held.of(o.Name); len(h) > 0 {
		nic.PID = h[0].PID
	}
	switch {
	case held.none(o.Name):
		nic.State = LeftOver
	case r.Phase == attaching && held.stranger(o.Name) != 0:
		nic.State = Attaching
	case r.Phase == attaching:
		nic.State = Incomplete
	case r.Phase == detaching:
		nic.State = Detaching
	}
	return nic
}

func portState(l *rtnl.Link) State {
	switch {
	case l.Port == nil:
		return NoBridge
	case !l.Up:
		return Down
	}
	return State(l.Port.State.String())
}
