// Package owned counts the NICs of a user by the kernel's truth.
package owned

import (
	"vmnet/internal/alias"
	"vmnet/internal/rtnl"
	"vmnet/macvtap"
)

// Count counts the NICs that a user has: taps in the netns of nl that privileged helpers have made for
// the user, as their aliases tell, whoever holds them; and the macvtaps and ipvtaps, wherever they are, of
// which the user's processes hold queues, as far as lookInto can look into them: it runs what it is
// given with the right to do that.
func Count(nl *rtnl.Conn, uid int, lookInto func(func() error) error) (n int, err error) {
	err = lookInto(func() error { n, err = macvtap.CountOf(uid); return err })
	if err != nil {
		return 0, err
	}
	links, err := nl.Links("tun", 0)
	if err != nil {
		return 0, err
	}
	for _, l := range links {
		if owner, ok := alias.Owner(l.Alias); ok && owner == uid && l.Tun != nil {
			n++
		}
	}
	return n, nil
}
