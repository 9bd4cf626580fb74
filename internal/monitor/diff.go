package monitor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// diffAll returns what has changed of all links, by index.
func diffAll(old, now map[int]*rtnl.Link) (events []Event) {
	all := maps.Clone(old)
	maps.Copy(all, now)
	for _, index := range slices.Sorted(maps.Keys(all)) {
		events = append(events, diffLink(old[index], now[index], func(i int) string { return nameOf(now, i) })...)
	}
	return events
}

// diffLink returns what has changed of a link; old or now is nil if there is none. name returns the
// name of the link of an index.
func diffLink(old, now *rtnl.Link, name func(int) string) (events []Event) {
	l := now
	add := func(kind, change, format string, args ...any) {
		events = append(events, Event{Kind: kind, Change: change, Name: l.Name, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case old == nil && now == nil:
		return nil
	case now == nil:
		l = old
		add(KindLink, "removed", "%s", kindText(l))
		return events
	case old == nil:
		add(KindLink, "added", "%s", kindText(l))
		old = &rtnl.Link{Name: l.Name, Up: l.Up, Carrier: l.Carrier, MTU: l.MTU, MAC: l.MAC}
	}
	if old.Name != now.Name {
		add(KindLink, "renamed", "from %s", old.Name)
	}
	if old.Master != now.Master {
		if old.Master != 0 {
			add(KindPort, "left", "%s", name(old.Master))
		}
		if now.Master != 0 {
			add(KindPort, "joined", "%s", name(now.Master))
		}
	}
	if old.Up != now.Up {
		add(KindLink, nic.UpDown(now.Up), "")
	}
	if old.Carrier != now.Carrier && old.Up == now.Up {
		add(KindLink, map[bool]string{true: "carrier", false: "no-carrier"}[now.Carrier], "")
	}
	if old.MTU != now.MTU {
		add(KindLink, "mtu", "%d, was %d", now.MTU, old.MTU)
	}
	if !slices.Equal(old.MAC, now.MAC) {
		add(KindLink, "mac", "%s, was %s", now.MAC, old.MAC)
	}
	if now.Port != nil && old.Port != nil && old.Port.State != now.Port.State {
		add(KindPort, now.Port.State.String(), "was %s", old.Port.State)
	}
	return events
}

func kindText(l *rtnl.Link) string {
	if l.Tun != nil && l.Tun.Tap {
		return "tap"
	}
	return l.Kind
}

// diffNICs returns what has changed of NICs. Their order does not matter.
func diffNICs(old, now []nic.NIC) (events []Event) {
	type key struct{ vm, id, name string }
	of := func(all []nic.NIC) map[key]nic.NIC {
		m := map[key]nic.NIC{}
		for _, n := range all {
			if n.VM != "" { // else a host access, or a tap without a guest
				m[key{n.VM, n.ID, n.Interface}] = n
			}
		}
		return m
	}
	before, after := of(old), of(now)
	all := maps.Clone(before)
	maps.Copy(all, after)
	keys := slices.SortedFunc(maps.Keys(all), func(a, b key) int {
		return cmp.Or(strings.Compare(a.vm, b.vm), strings.Compare(a.id, b.id), strings.Compare(a.name, b.name))
	})
	for _, k := range keys {
		was, had := before[k]
		is, has := after[k]
		add := func(change, format string, args ...any) {
			events = append(events, Event{
				Kind: KindNIC, Change: change, Name: k.vm + "/" + k.id, Guest: k.vm, PID: cmp.Or(is.PID, was.PID),
				Text: fmt.Sprintf(format, args...),
			})
		}
		switch {
		case !had:
			add("added", "%s %s on %s, %s", is.Type, is.Interface, is.Source, is.State)
			continue
		case !has:
			add("removed", "%s %s", was.Type, was.Interface)
			continue
		}
		if was.State != is.State {
			add(string(is.State), "was %s", was.State)
		}
		if was.Source != is.Source {
			add("moved", "to %s, from %s", is.Source, was.Source)
		}
		if was.Port != is.Port {
			add("port", "%q, was %q", is.Port, was.Port)
		}
	}
	return events
}

// diffGuests returns the guests that have ended and started.
func diffGuests(old, now []Guest) (events []Event) {
	for _, g := range old {
		if !slices.Contains(now, g) {
			events = append(events, Event{Kind: KindGuest, Change: "ended", Name: g.Name, PID: g.PID})
		}
	}
	for _, g := range now {
		if !slices.Contains(old, g) {
			events = append(events, Event{Kind: KindGuest, Change: "started", Name: g.Name, PID: g.PID})
		}
	}
	return events
}
