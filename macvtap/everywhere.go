package macvtap

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/rtnl"
)

// Found is a device in a netns of its own, by that one's id in the netns of its parent device.
type Found struct {
	*rtnl.Link
	NetnsID int
}

// Everywhere lists the devices that Create has made on parent devices in nl's netns, whoever holds them and
// however: also those whose queues and netns no process has open, since they wait in a socket's queue, are
// among io_uring's registered files or pinned by a mount. Others, of which vmnet knows nothing, may be among them, and
// their LowerNS is that of nl's netns. Namespaces that nl may not look into are left out.
func Everywhere(nl *rtnl.Conn) (found []Found, err error) {
	ids, err := nl.NetnsIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		for _, kind := range []Kind{Macvtap, IPVtap} {
			links, err := nl.LinksIn(id, string(kind))
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
				continue
			case err != nil:
				return nil, err
			}
			for _, l := range links {
				found = append(found, Found{l, id})
			}
		}
	}
	return found, nil
}
