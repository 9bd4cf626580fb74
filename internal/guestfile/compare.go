package guestfile

import (
	"slices"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/nicflags"
	"vmnet/tapmgr/nic"
)

// There describes a NIC that a guest has.
type There struct {
	Record nic.Record
	State  nic.State
	// Names are other names of the bridge, uplink or parent device that the record names.
	Names []string
	// Off says what differs from the record and can be mended in place; empty for nothing.
	Off string
	// Stored says that libvirt has stored the NIC.
	Stored bool
}

// Action is what makes one NIC as its file says.
type Action string

// Actions.
const (
	Attach Action = "attach"
	Set    Action = "set"
	Detach Action = "detach"
	Keep   Action = "keep" // nothing: it is as it should be
)

// A Change is one NIC's part of the way from what is to what the file says.
type Change struct {
	NIC    string
	Action Action
	Spec   nic.Spec // of an Attach or Set: the NIC as it should be
	// Differences are what a Set changes, or what an Attach asks for.
	Differences []nic.Change
	// Why says what is wrong with a NIC that is there, other than that the file differs from its
	// record. vmnet check finds that without the file.
	Why string
}

// Compare returns what makes the NICs of a guest as the file says: first what is detached, which
// gives others its slots and addresses, then what is changed, then what is attached. A NIC that is
// prepared for a guest that is to arrive waits for its commit or abort, and is left alone.
func (g *Guest) Compare(there []There) []Change {
	var detach, set, attach, keep []Change
	for _, t := range there {
		declared := func(n NIC) bool { return n.Spec.NIC == t.Record.NIC && n.State != Absent }
		if !slices.ContainsFunc(g.NICs, declared) && !t.Record.Prepared {
			detach = append(detach, Change{NIC: t.Record.NIC, Action: Detach})
		}
	}
	for _, n := range g.NICs {
		if n.State == Absent {
			continue
		}
		i := slices.IndexFunc(there, func(t There) bool { return t.Record.NIC == n.Spec.NIC })
		c := n.compare(there, i)
		switch c.Action {
		case Attach:
			attach = append(attach, c)
		case Set:
			set = append(set, c)
		default:
			keep = append(keep, c)
		}
	}
	return slices.Concat(detach, set, attach, keep)
}

// again are the states of a NIC that the same attach restores or completes, or says why it cannot.
var again = []nic.State{
	nic.Attaching, nic.Detaching, nic.Incomplete, nic.LeftOver, nic.Gone, nic.NoSwitch, nic.NoBridge,
}

// compare compares a NIC with there[i], or with nothing if i is negative.
func (n NIC) compare(there []There, i int) Change {
	c := Change{NIC: n.Spec.NIC, Spec: n.Spec}
	if i < 0 {
		c.Action, c.Differences = Attach, nicflags.Differences(nic.Spec{}, n.Spec)
		return c
	}
	t := there[i]
	if t.Record.Prepared {
		c.Action = Keep
		return c
	}
	now := t.Record.Spec()
	c.Spec = n.over(t)
	c.Differences = nicflags.Differences(now, c.Spec)
	if h := n.Spec.OptionsHash(); h != t.Record.Options && h == "" {
		c.Differences = append(c.Differences, nic.Change{Flag: "device-opt", From: "others"})
	}
	if n.Spec.Persistent != t.Stored {
		c.Differences = append(c.Differences, nic.Persistence(n.Spec.Persistent))
	}
	switch {
	case slices.Contains(again, t.State):
		c.Action, c.Why, c.Spec = Attach, "it is "+string(t.State), n.Spec
	case t.State == nic.Changing:
		c.Action, c.Why = Set, "a change of it was cut short"
	case len(c.Differences) > 0 || t.Off != "":
		c.Action, c.Why = Set, t.Off
	default:
		c.Action = Keep
	}
	return c
}

// over returns the NIC as the file says it, where the file leaves open what the NIC can be, as it
// is. A port's settings and limits that the file does not name are the defaults.
func (n NIC) over(t There) nic.Spec {
	asked, s, now := n.Spec, n.Spec.WithDefaults(), t.Record.Spec()
	s.Target, s.Via, s.Vhost = now.Target, now.Via, now.Vhost
	if asked.Via != "" {
		s.Via = asked.Via
	}
	if asked.Vhost != "" && asked.Vhost != nic.VhostAuto {
		s.Vhost = asked.Vhost
	}
	if s.MAC == nil {
		s.MAC = now.MAC
	}
	if asked.MTU == 0 {
		s.MTU = now.MTU
	}
	if asked.Model == "" {
		s.Model = now.Model
	}
	if asked.Queues == 0 || asked.Queues == nic.QueuesAuto {
		s.Queues = now.Queues
	}
	if s.Port.Equal(now.Port) {
		s.Port = now.Port
	}
	if asked.OptionsHash() == t.Record.Options { // the record keeps no more of them
		s.DeviceOptions = nil
		if s.Lower != nil {
			l := *s.Lower
			l.NoPromisc, l.Flag, l.Sources, l.Addrs = false, "", nil, nil
			if now.Lower != nil {
				l.Addrs = now.Lower.Addrs // which port security has recorded
			}
			s.Lower = &l
		}
	}
	if s.Switch != nil && now.Switch != nil {
		s.Switch = overSwitch(*s.Switch, *now.Switch)
	}
	if slices.Contains(t.Names, s.Source()) {
		s = s.WithSource(now.Source())
	}
	return s
}

func overSwitch(s, now nic.Switch) *nic.Switch {
	if s.By == nic.ByAuto {
		s.By = now.By
	}
	l := s.Limits() // the defaults are 0, as in a record
	s.Storm, s.MaxAddresses = l.Storm, l.MaxAddresses
	is, errIs := control.Path(now.Name)
	asked, err := control.Path(s.Name)
	if is == asked && errIs == nil && err == nil { // a name, and the path of that switch's socket
		s.Name = now.Name
	}
	return &s
}
