package vswitch_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

// A host is a network namespace that stands for a guest. It has one tap, whose queues the switch
// has.
type host struct {
	t      testing.TB
	ns     *netns.NS
	nl     *netlink.Handle
	device string
	v4, v6 string
}

// newHost makes host number n of 10.9.0.0/16 and fd09::/64.
func newHost(t testing.TB, n int, device string) *host {
	t.Helper()
	ns := nstest.New(t)
	return &host{
		t, ns, nstest.Handle(t, ns), device, fmt.Sprintf("10.9.%d.%d", n/250, n%250+1),
		fmt.Sprintf("fd09::%x", n+1),
	}
}

// patient makes the host's kernel ask 20 times for a neighbor, a second apart, rather than 3 times:
// a busy machine may let nothing run for that long.
func (h *host) patient() {
	h.t.Helper()
	for _, family := range []string{"ipv4", "ipv6"} {
		name := fmt.Sprintf("/proc/sys/net/%s/neigh/%s/mcast_solicit", family, h.device)
		if err := h.ns.Do(func() error { return os.WriteFile(name, []byte("20"), 0) }); err != nil {
			h.t.Fatal(err)
		}
	}
}

// up gives the device an MTU and the host's addresses.
func (h *host) up(mtu int) {
	h.t.Helper()
	h.patient()
	l := h.link(h.device)
	if err := h.nl.LinkSetMTU(l, mtu); err != nil {
		h.t.Fatal(err)
	}
	for _, a := range []string{h.v4 + "/16", h.v6 + "/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			h.t.Fatal(err)
		}
		addr.Flags = 2 // IFA_F_NODAD: skip duplicate address detection
		if err := h.nl.AddrAdd(l, addr); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := h.nl.LinkSetUp(l); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) link(name string) netlink.Link {
	h.t.Helper()
	l, err := h.nl.LinkByName(name)
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

// newSwitch makes a switch that is closed at the end of the test, and logs its counters if the test
// has failed.
func newSwitch(t testing.TB) *vswitch.Switch {
	t.Helper()
	sw := vswitch.New(vswitch.Config{})
	t.Cleanup(func() {
		for _, p := range sw.Ports() {
			if t.Failed() {
				t.Logf("%+v", p.Stats())
			}
		}
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	return sw
}

func addPort(t testing.TB, sw *vswitch.Switch, name string, w *vswitch.Wire, cfg vport.Config) *vswitch.Port {
	t.Helper()
	p, err := sw.AddPort(name, w, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tapHost makes host n, with a tap of that many queues on port "hN".
func tapHost(t testing.TB, sw *vswitch.Switch, n, queues int, cfg vport.Config) *host {
	t.Helper()
	h := newHost(t, n, "eth0")
	tap, err := tun.Create(h.ns, h.device, queues > 1)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close() // the switch has copies
	for range queues - 1 {
		if err := tap.AddQueue(); err != nil {
			t.Fatal(err)
		}
	}
	w, err := vswitch.OpenTap(tap.Queues()...)
	if err != nil {
		t.Fatal(err)
	}
	addPort(t, sw, fmt.Sprintf("h%d", n), w, cfg)
	h.up(max(cfg.MTU, 1500))
	return h
}

// socketHost makes host n as a guest behind a datagram socket: a tap without vnet headers, whose
// frames are copied to and from the socket one by one.
func socketHost(t *testing.T, sw *vswitch.Switch, n int, cfg vport.Config) *host {
	t.Helper()
	w, far, err := vswitch.SocketPair(max(cfg.MTU, 1500))
	if err != nil {
		t.Fatal(err)
	}
	return carriedHost(t, sw, n, cfg, w, far, plain{})
}

// streamHost is socketHost with a stream.
func streamHost(t *testing.T, sw *vswitch.Switch, n int, cfg vport.Config) *host {
	t.Helper()
	w, far, err := vswitch.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	return carriedHost(t, sw, n, cfg, w, far, framed{})
}

// carriedHost is a host whose frames cross w, whose other end is far, in that form.
func carriedHost(t *testing.T, sw *vswitch.Switch, n int, cfg vport.Config, w *vswitch.Wire, far *os.File,
	has form,
) *host {
	t.Helper()
	ns := nstest.New(t)
	tap, err := tun.CreateNumbered(ns, false)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, n, tap.Name)
	h.ns, h.nl = ns, nstest.Handle(t, ns)
	addPort(t, sw, fmt.Sprintf("h%d", n), w, cfg)
	h.up(max(cfg.MTU, 1500))
	carry(t, pollable(t, tap.Queues()[0]), pollable(t, far), has)
	_ = tap.Close()
	_ = far.Close()
	return h
}

// A form is how frames are in a file.
type form interface {
	read(from io.Reader, room []byte) (n int, err error)
	write(to io.Writer, frame []byte) error
}

// plain is a frame in each read and write.
type plain struct{}

func (plain) read(from io.Reader, room []byte) (int, error) { return from.Read(room) }

func (plain) write(to io.Writer, frame []byte) error {
	_, err := to.Write(frame)
	return err
}

// framed is each frame after its length.
type framed struct{}

func (framed) read(from io.Reader, room []byte) (int, error) {
	if _, err := io.ReadFull(from, room[:4]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(room)
	if int(n) > len(room) {
		return 0, fmt.Errorf("a frame of %d bytes", n)
	}
	return io.ReadFull(from, room[:n])
}

func (framed) write(to io.Writer, frame []byte) error {
	_, err := to.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	return err
}

// carry copies frames between a tap and a file, which has them in that form, until the test ends.
func carry(t *testing.T, tap, far *os.File, has form) {
	var wg sync.WaitGroup
	one := func(dst io.Writer, out form, src io.Reader, in form) {
		buf := make([]byte, 1<<17)
		for {
			n, err := in.read(src, buf)
			if err != nil {
				return
			}
			_ = out.write(dst, buf[:n]) // the kernel refuses some frames
		}
	}
	wg.Go(func() { one(tap, plain{}, far, has) })
	wg.Go(func() { one(far, has, tap, plain{}) })
	t.Cleanup(func() {
		_ = tap.Close()
		_ = far.Close()
		wg.Wait()
	})
}

// tcp sends n bytes from one host to another and verifies them, over IPv4 and IPv6.
func tcp(t *testing.T, from, to *host, n int64) {
	t.Helper()
	for _, addr := range []string{to.v4 + ":0", "[" + to.v6 + "]:0"} {
		if err := tryTCP(t, from, to, addr, n, 30*time.Second); err != nil {
			t.Errorf("%s to %s: %v", from.v4, addr, err)
		}
	}
}

func tryTCP(t *testing.T, from, to *host, addr string, n int64, limit time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var s *traffic.Server
	if err := to.ns.Do(func() (err error) { s, err = traffic.ServeTCP(addr); return err }); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return from.ns.Do(func() error {
		_, err := traffic.SendTCP(ctx, s.Addr, n)
		return err
	})
}

// udp sends datagrams of that size, which come back.
func udp(t *testing.T, from, to *host, size int) {
	t.Helper()
	for _, addr := range []string{to.v4 + ":0", "[" + to.v6 + "]:0"} {
		var s *traffic.Server
		if err := to.ns.Do(func() (err error) { s, err = traffic.ServeUDP(addr); return err }); err != nil {
			t.Fatal(err)
		}
		err := from.ns.Do(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			res, err := traffic.SendUDP(ctx, s.Addr, 20, size)
			if err == nil && res.Received < 19 { // a busy machine may lose one
				err = fmt.Errorf("%+v", res)
			}
			return err
		})
		s.Close()
		if err != nil {
			t.Errorf("%s to %s, %d bytes: %v", from.v4, addr, size, err)
		}
	}
}

// ping reports whether an address answers within a second.
func ping(t *testing.T, from *host, addr string, size int) error {
	t.Helper()
	return from.ns.Do(func() error {
		_, err := traffic.SendPing(t.Context(),
			traffic.Ping{
				Addr: addr, Count: 10, Timeout: 100 * time.Millisecond, UntilFirst: true,
				Size: size, DontFragment: true,
			})
		return err
	})
}
