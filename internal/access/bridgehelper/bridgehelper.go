// Package bridgehelper is the work of QEMU's qemu-bridge-helper: one tap on a bridge, whose queue is sent over a
// socket that the caller has named.
package bridgehelper

import (
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/bridge"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/plaintap"
	"vmnet/internal/access/policy"
	"vmnet/internal/access/privilege"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// Request is what is asked for.
type Request struct {
	Bridge  string
	VnetHdr bool // the VMM can take a vnet header
	FD      int  // the socket
	Port    bridge.PortConfig

	// Settle, if not nil, may change Bridge and Port by what the policy says.
	Settle func(*policy.Policy, *Request) error
}

// here is the netns that the process is in.
var here *netns.NS

// Serve makes the tap of a caller that may have it, and sends its queue. All of its work is done
// with CAP_NET_ADMIN alone.
func Serve(p *privilege.Process, files gate.Files, r Request) error {
	sock, err := Socket(p, r.FD)
	if err != nil {
		return err
	}
	// Our end closes it, not we: libvirt looks at stderr once when the socket ends, and by then
	// that must tell why.
	nl, err := rtnl.Open(here)
	if err != nil {
		return err
	}
	defer nl.Close()
	g, err := gate.Open(files, p.Caller, host{nl, p})
	if err != nil {
		return err
	}
	if r.Settle != nil {
		if err := r.Settle(g.Policy(), &r); err != nil {
			return err
		}
	}
	g.CountLater = true
	if err := g.Allow(gate.Always, policy.Request{Bridge: r.Bridge, Port: r.Port, Queues: 1}); err != nil {
		return err
	}
	tap, err := plaintap.Make(here, nl, p.Caller.UID, r.Bridge, r.Port, r.VnetHdr)
	if err != nil {
		return err
	}
	defer tap.Close()
	if err := g.Still(); err != nil {
		return err
	}
	// One byte and one fd: QEMU looks at nothing else (recv_fd in its net/tap.c).
	return sock.Send([]byte{0}, tap.Queues()[0])
}

// Socket takes over the socket that the caller has named, and makes this process one that can
// do no more than serve it.
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
	nl *rtnl.Conn
	p  *privilege.Process
}

func (h host) LinkName(name string) (string, error) {
	l, err := h.nl.Link(name)
	if err != nil {
		return "", err
	}
	return l.Name, nil
}

func (h host) Owned(uid int) (int, error) { return plaintap.CountOwned(h.nl, uid, h.p.With) }
