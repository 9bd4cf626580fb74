// Package dnsrelay passes questions for names on to name servers on the host's loopback interface,
// such as systemd-resolved, unbound or dnsmasq: a network's server, which is in a namespace of its
// own, asks an address there, and the relay asks the same address in the host's namespace. It does
// not look into messages. It runs in the host's namespace as an ordinary user, without a
// capability, and has nothing of the server's namespace but its sockets.
package dnsrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxAddresses bounds the name servers.
	MaxAddresses = 16
	// maxQuestions bounds the questions and the connections that wait for an answer. dnsmasq has at
	// most 150 questions (dnsmasq(8), --dns-forward-max) and 20 connections.
	maxQuestions = 256
	// answerTimeout is how long a name server may take for the next part of an answer.
	answerTimeout = 5 * time.Second
	// maxMessage is the most that a datagram has, in bytes, with or without EDNS (RFC 6891, 6.2.3).
	maxMessage = 65535
	// pause follows an error of a socket, such as that there are too many descriptors.
	pause = 10 * time.Millisecond
)

// Main is the program that relays. Its argument is the number of files that it has inherited from
// Open. It ends after SIGTERM.
func Main(args []string) error {
	if len(args) != 1 {
		return errors.New("DNS relay: want the number of sockets")
	}
	count, err := strconv.Atoi(args[0])
	if err != nil || count < 0 || count%2 != 0 || count > 2*MaxAddresses {
		return fmt.Errorf("DNS relay: %q is not the number of sockets that Open opens", args[0])
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	datagrams, connections, err := inherited(count)
	if err != nil {
		return fmt.Errorf("DNS relay: %w", err)
	}
	newRelay().run(ctx, datagrams, connections)
	return nil
}

// relay asks a name server what comes by a socket: the one with the socket's own address.
type relay struct {
	slots   chan struct{} // one for each question that waits
	timeout time.Duration
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	all     sync.WaitGroup
}

func newRelay() *relay {
	return &relay{
		slots: make(chan struct{}, maxQuestions), timeout: answerTimeout,
		dial: (&net.Dialer{Timeout: answerTimeout}).DialContext,
	}
}

// run relays until ctx ends, and closes the sockets.
func (r *relay) run(ctx context.Context, datagrams []net.PacketConn, connections []net.Listener) {
	for _, c := range datagrams {
		r.all.Go(func() { r.datagrams(ctx, c) })
	}
	for _, l := range connections {
		r.all.Go(func() { r.connections(ctx, l) })
	}
	r.all.Wait()
}

// do calls f in a goroutine unless too many questions wait, and reports whether it does. A client
// that gets no answer asks again.
func (r *relay) do(f func()) bool {
	select {
	case r.slots <- struct{}{}:
	default:
		return false
	}
	r.all.Go(func() {
		defer func() { <-r.slots }()
		f()
	})
	return true
}

// datagrams relays what comes by UDP, until ctx ends.
func (r *relay) datagrams(ctx context.Context, c net.PacketConn) {
	defer closeWith(ctx, c)()
	b := make([]byte, maxMessage)
	for ctx.Err() == nil {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			sleep(ctx, pause)
			continue
		}
		question := bytes.Clone(b[:n])
		r.do(func() {
			if answer, err := r.ask(ctx, c.LocalAddr().String(), question); err == nil {
				_, _ = c.WriteTo(answer, from) // which may not wait any more
			}
		})
	}
}

// ask sends a datagram from a port of its own, and returns the first one that the name server sends
// back.
func (r *relay) ask(ctx context.Context, server string, question []byte) ([]byte, error) {
	c, err := r.dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer closeWith(ctx, c)()
	if err := c.SetDeadline(time.Now().Add(r.timeout)); err != nil {
		return nil, err
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	b := make([]byte, maxMessage)
	n, err := c.Read(b)
	return b[:n], err
}

// connections relays what comes by TCP, until ctx ends.
func (r *relay) connections(ctx context.Context, l net.Listener) {
	defer closeWith(ctx, l)()
	for ctx.Err() == nil {
		c, err := l.Accept()
		if err != nil {
			sleep(ctx, pause)
			continue
		}
		if !r.do(func() { r.connect(ctx, c) }) {
			_ = c.Close()
		}
	}
}

// connect joins a connection with one to the name server, until both directions have ended, or
// neither has moved for a while. It closes both.
func (r *relay) connect(ctx context.Context, c net.Conn) {
	defer closeWith(ctx, c)()
	up, err := r.dial(ctx, "tcp", c.LocalAddr().String())
	if err != nil {
		return
	}
	defer closeWith(ctx, up)()
	progress := func() error {
		end := time.Now().Add(r.timeout)
		return errors.Join(c.SetDeadline(end), up.SetDeadline(end))
	}
	if progress() != nil {
		return
	}
	copies := make(chan error, 2)
	go func() { copies <- forward(up, c, progress) }()
	go func() { copies <- forward(c, up, progress) }()
	if err := <-copies; err != nil {
		_, _ = c.Close(), up.Close() // so that the other one ends
	}
	<-copies
}

// forward copies until the end of what from sends, of which it tells to.
func forward(to, from net.Conn, progress func() error) error {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return err
			}
			if err := progress(); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return to.(interface{ CloseWrite() error }).CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

// closeWith closes c when ctx ends. The function that it returns closes it before that.
func closeWith(ctx context.Context, c io.Closer) func() {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return func() {
		if stop() {
			_ = c.Close()
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
