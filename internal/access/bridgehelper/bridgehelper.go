// Package bridgehelper does the work of QEMU's qemu-bridge-helper: it makes one tap on a bridge and
// sends the tap's queue over a socket that the caller has named.
package bridgehelper

import (
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/bridge/brport"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/plaintap"
	"vmnet/internal/access/policy"
	"vmnet/internal/access/privilege"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
)

// Request is what the caller asks for.
type Request struct {
	Bridge  string
	VnetHdr bool // the VMM supports vnet headers
	FD      int  // the socket
	Port    brport.Settings

	// Settle, if not nil, may change Bridge, Port and OVSDB according to the policy.
	Settle func(*policy.Policy, *Request) error
	// MakeOVS makes the tap if the bridge may be one of Open vSwitch; nil where none can be.
	MakeOVS func(Request) (*tun.Tap, error)
	OVSDB   string // socket of its database; empty for the usual one
}

// Helper serves a request, in the netns of this process. Close it.
type Helper struct {
	nl   *rtnl.Conn
	name string     // of link, or its altname
	link *rtnl.Link // the one that was found last; nil for none
}

// Open opens a netlink socket.
func Open() (*Helper, error) {
	nl, err := rtnl.Open(here)
	if err != nil {
		return nil, err
	}
	return &Helper{nl: nl}, nil
}

// Close closes the netlink socket.
func (h *Helper) Close() { h.nl.Close() }

// OnOVS reports whether a bridge may be one of Open vSwitch, for which a Request needs MakeOVS.
func (h *Helper) OnOVS(bridge string) bool {
	l, err := h.read(bridge)
	return err == nil && l.MayBeOVS()
}

// read finds the link of a name. It asks the kernel again only for another name, since each answer
// takes time. Its callers use the link's index, so they never get a later link of the same name.
func (h *Helper) read(name string) (*rtnl.Link, error) {
	if h.link != nil && h.name == name {
		return h.link, nil
	}
	l, err := h.nl.Link(name)
	if err == nil {
		h.name, h.link = name, l
	}
	return l, err
}

// here is the netns of this process.
var here *netns.NS

// Serve makes a tap if the caller may have it, and sends its queue. It works with CAP_NET_ADMIN
// alone.
func (h *Helper) Serve(p *privilege.Process, files gate.Files, r Request) error {
	sock, err := Socket(p, r.FD)
	if err != nil {
		return err
	}
	// The exit of this process closes the socket: libvirt looks at stderr once when the socket
	// closes, and by then the reason must be there.
	g, err := gate.Open(files, p.Caller, host{h, p})
	if err != nil {
		return err
	}
	if r.Settle != nil {
		if err := r.Settle(g.Policy(), &r); err != nil {
			return err
		}
	}
	g.CountLater = true
	asked := policy.Request{Bridge: r.Bridge, OVSDB: r.OVSDB, Port: r.Port, Queues: 1}
	if err := g.Allow(gate.Always, asked); err != nil {
		return err
	}
	tap, err := h.make(r, p.Caller.UID)
	if err != nil {
		return err
	}
	defer tap.Close()
	if err := g.Still(); err != nil {
		return err
	}
	// Send one byte and one fd: QEMU reads nothing else (recv_fd in its net/tap.c).
	return sock.Send([]byte{0}, tap.Queues()[0])
}

func (h *Helper) make(r Request, owner int) (*tun.Tap, error) {
	if r.MakeOVS != nil && h.OnOVS(r.Bridge) {
		return r.MakeOVS(r)
	}
	link, err := h.read(r.Bridge)
	br, err := bridges.Of(r.Bridge, link, err)
	if err != nil {
		return nil, err
	}
	return plaintap.Make(here, h.nl, owner, br, r.Port, r.VnetHdr)
}

// Socket takes over the socket that the caller has named, and gives up every privilege that serving
// it does not need.
func Socket(p *privilege.Process, fd int) (*fdpass.Socket, error) {
	if err := privilege.Inherited(fd); err != nil {
		return nil, err
	}
	sock, err := fdpass.Inherited(fd)
	if err != nil {
		return nil, err
	}
	if err := p.Confine(cap.NET_ADMIN); err != nil {
		return nil, err
	}
	return sock, privilege.CloseInherited(fd)
}

// host is the machine as this process sees it.
type host struct {
	*Helper
	p *privilege.Process
}

func (h host) LinkName(name string) (string, error) {
	l, err := h.read(name)
	if err != nil {
		return "", err
	}
	return l.Name, nil
}

func (h host) Owned(uid int) (int, error) { return plaintap.CountOwned(h.nl, uid, h.p.With) }
