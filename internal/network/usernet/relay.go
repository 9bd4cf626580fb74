package usernet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vmnet/internal/network/config"
)

// A forward is a port of the host whose connections are led on to a guest. The supervisor opens its
// socket on the host; the agent has it from then on, and connects to the guest from inside.
type forward struct {
	Key    string `json:"key"`    // names the socket: tcp 0.0.0.0:8080
	Target string `json:"target"` // address and port of the guest
}

// maxPorts bounds the ports of the host that a user's network listens on, each of which is a file.
const maxPorts = 200

// forwardsOf returns those of a network, a port each.
func forwardsOf(n *config.Network) (all []forward, err error) {
	for _, f := range n.Forwards {
		target, err := n.Target(f)
		if err != nil {
			return nil, err
		}
		on := f.Listen
		if !on.IsValid() {
			// Of the guest's IP version only, so that an IPv6 guest can have the same port.
			on = netip.IPv4Unspecified()
			if target.Is6() {
				on = netip.IPv6Unspecified()
			}
		}
		for port := int(f.First); port <= int(f.Last); port++ {
			to := uint16(port)
			if f.Port != 0 {
				to = f.Port
			}
			all = append(all, forward{
				Key:    f.Protocol + " " + netip.AddrPortFrom(on, uint16(port)).String(),
				Target: netip.AddrPortFrom(target, to).String(),
			})
		}
	}
	if len(all) > maxPorts {
		return nil, fmt.Errorf("forwards from %d ports: a user's network has at most %d", len(all), maxPorts)
	}
	return all, nil
}

// listenOn opens the socket of a forward. The caller closes the file.
func listenOn(key string) (*os.File, error) {
	protocol, text, _ := strings.Cut(key, " ")
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	version := "4"
	if addr.Addr().Is6() {
		version = "6"
	}
	var l io.Closer
	if protocol == "udp" {
		l, err = net.ListenUDP("udp"+version, net.UDPAddrFromAddrPort(addr))
	} else {
		l, err = net.ListenTCP("tcp"+version, net.TCPAddrFromAddrPort(addr))
	}
	if err != nil {
		cure := "ss -lntup shows what listens there"
		if addr.Port() < 1024 && errors.Is(err, os.ErrPermission) {
			cure = "a port from 1024 on needs no privilege; or as root: sysctl net.ipv4.ip_unprivileged_port_start=" +
				fmt.Sprint(addr.Port())
		}
		return nil, fmt.Errorf("forward from %s: %w (%s)", key, err, cure)
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	return f, errors.Join(err, l.Close())
}

// relays are the forwards of an agent.
type relays struct {
	byKey map[string]*relay
	busy  atomic.Int32 // connections
}

// maxBusy bounds the connections that are relayed at a time.
const maxBusy = 2048

// relay is one forward.
type relay struct {
	target atomic.Pointer[string]
	close  func() error
}

// set replaces the forwards. It takes ownership of the files, which are the sockets of those
// forwards that are new, in their order.
func (r *relays) set(all []forward, files []*os.File) error {
	if r.byKey == nil {
		r.byKey = map[string]*relay{}
	}
	wanted := map[string]bool{}
	var errs []error
	for _, f := range all {
		wanted[f.Key] = true
		has := r.byKey[f.Key]
		if has == nil {
			if len(files) == 0 {
				errs = append(errs, fmt.Errorf("forward %s: its socket is missing", f.Key))
				continue
			}
			var err error
			if has, err = r.open(f, files[0]); err != nil {
				errs = append(errs, fmt.Errorf("forward %s: %w", f.Key, err))
			}
			files = files[1:]
			if has == nil {
				continue
			}
			r.byKey[f.Key] = has
		}
		has.target.Store(&f.Target)
	}
	for key, has := range r.byKey {
		if !wanted[key] {
			errs = append(errs, has.close())
			delete(r.byKey, key)
		}
	}
	for _, f := range files {
		_ = f.Close()
	}
	return errors.Join(errs...)
}

func (r *relays) open(f forward, file *os.File) (*relay, error) {
	defer file.Close()
	n := &relay{}
	n.target.Store(&f.Target)
	if strings.HasPrefix(f.Key, "udp ") {
		c, err := net.FilePacketConn(file)
		if err != nil {
			return nil, err
		}
		n.close = c.Close
		go r.serveUDP(c, n)
		return n, nil
	}
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	n.close = l.Close
	go r.serveTCP(l, n)
	return n, nil
}

// Times of relays.
const (
	dialTime  = 10 * time.Second
	udpTime   = 90 * time.Second // without a datagram either way
	retryTime = 10 * time.Millisecond
)

// enter counts a connection, and reports whether there is room for it.
func (r *relays) enter() bool {
	if r.busy.Add(1) > maxBusy {
		r.busy.Add(-1)
		return false
	}
	return true
}

func (r *relays) serveTCP(l net.Listener, n *relay) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no fd is left, or the client has gone
			time.Sleep(retryTime)
			continue
		}
		if !r.enter() {
			_ = c.Close()
			continue
		}
		go func() {
			defer r.busy.Add(-1)
			defer c.Close()
			to, err := net.DialTimeout("tcp", *n.target.Load(), dialTime)
			if err != nil {
				_ = c.(*net.TCPConn).SetLinger(0) // the client sees a reset, as from a closed port
				return
			}
			defer to.Close()
			join(c.(*net.TCPConn), to.(*net.TCPConn))
		}()
	}
}

// join copies both ways until both ends have ended; package net splices.
func join(a, b *net.TCPConn) {
	var both sync.WaitGroup
	one := func(to, from *net.TCPConn) {
		if _, err := io.Copy(to, from); err != nil {
			// The other way ends too: a reset is passed on.
			_, _ = a.SetLinger(0), b.SetLinger(0)
			_, _ = a.Close(), b.Close()
			return
		}
		_ = to.CloseWrite()
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}

// serveUDP gives each client a socket of its own towards the guest, by which answers come back.
func (r *relays) serveUDP(c net.PacketConn, n *relay) {
	var mu sync.Mutex
	clients := map[string]net.Conn{}
	room := make([]byte, 64<<10)
	for {
		size, from, err := c.ReadFrom(room)
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			continue // an ICMP error about a client
		}
		key := from.String()
		mu.Lock()
		to := clients[key]
		mu.Unlock()
		if to == nil {
			if !r.enter() {
				continue
			}
			if to, err = net.Dial("udp", *n.target.Load()); err != nil {
				r.busy.Add(-1)
				continue
			}
			mu.Lock()
			clients[key] = to
			mu.Unlock()
			go func() {
				answers(c, to, from)
				mu.Lock()
				delete(clients, key)
				mu.Unlock()
				r.busy.Add(-1)
			}()
		}
		_ = to.SetReadDeadline(time.Now().Add(udpTime))
		_, _ = to.Write(room[:size])
	}
	mu.Lock()
	defer mu.Unlock()
	for _, to := range clients {
		_ = to.Close()
	}
}

// answers passes the guest's datagrams on to a client, until none has come for a while.
func answers(c net.PacketConn, guest net.Conn, client net.Addr) {
	defer guest.Close()
	room := make([]byte, 64<<10)
	for {
		size, err := guest.Read(room)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			continue // an ICMP error: the guest does not listen yet; the deadline ends it
		}
		_ = guest.SetReadDeadline(time.Now().Add(udpTime))
		if _, err := c.WriteTo(room[:size], client); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}
