package plaintap

import (
	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap"
)

// CountOwned counts the NICs that a user has: taps in the netns of nl that privileged helpers have made for the user, as their
// aliases tell, and macvtaps and ipvtaps on parent devices in that netns likewise, whoever holds them and however. If the
// user's processes hold queues of more macvtaps and ipvtaps than that, as far as lookInto can look into them, those
// count: lookInto runs what it is given with the privilege to do that.
func CountOwned(nl *rtnl.Conn, uid int, lookInto func(func() error) error) (int, error) {
	held, made := 0, 0
	err := lookInto(func() (err error) { held, err = macvtap.CountOf(uid); return err })
	if err != nil {
		return 0, err
	}
	devices, err := macvtap.Everywhere(nl)
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
