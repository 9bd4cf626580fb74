package plaintap

import (
	"vmnet/internal/alias"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
)

// CountOwned counts the NICs of a user in the netns of nl: taps that privileged helpers have made
// for the user, according to their aliases, and macvtaps and ipvtaps on parent devices, whether or
// not a process holds them. If lookInto shows that the user's processes hold queues of more
// macvtaps and ipvtaps than that, those count instead. lookInto runs its argument with the
// privilege to look into these processes.
func CountOwned(nl *rtnl.Conn, uid int, lookInto func(func() error) error) (int, error) {
	held, made := 0, 0
	err := lookInto(func() (err error) { held, err = macvlan.CountOf(uid); return err })
	if err != nil {
		return 0, err
	}
	devices, err := macvlan.Everywhere(nl)
	if err != nil {
		return 0, err
	}
	for _, d := range devices {
		made += count(d.Link, uid)
	}
	links, err := nl.Links("tun", 0)
	if err != nil {
		return 0, err
	}
	taps := 0
	for _, l := range links {
		taps += count(l, uid)
	}
	return taps + max(held, made), nil
}

func count(l *rtnl.Link, uid int) int {
	if owner, ok := alias.Owner(l.Alias); ok && owner == uid {
		return 1
	}
	return 0
}
