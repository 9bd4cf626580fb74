package macvlan

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

// Found is a device in a netns of its own.
type Found struct {
	*rtnl.Link
	NetnsID int // the id of that netns in the netns of the device's parent device
}

// Everywhere lists the devices that Create has made on parent devices in nl's netns. It also finds
// those whose queues and netns no process has open, because the fds wait in a socket's queue, are
// registered with io_uring, or because a mount pins the netns. The result may include devices that
// vmnet has not made; their LowerNS is the id of nl's netns. Everywhere skips namespaces that nl
// may not read.
func Everywhere(nl *rtnl.Conn) (found []Found, err error) {
	ids, err := nl.NetnsIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		for _, kind := range []vtap.Kind{vtap.Macvtap, vtap.IPVtap} {
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
