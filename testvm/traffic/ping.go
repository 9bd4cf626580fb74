// Package traffic generates and checks test traffic: pings, TCP streams whose every byte is
// checked, and UDP echoes. The guest and tests on the host use the same code.
//
// The calling goroutine opens the sockets, so a call inside netns.NS.Do works in that namespace.
package traffic

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Ping is a series of ICMP or ICMPv6 echo requests, one after the other.
type Ping struct {
	// Addr is the destination; a link-local one has a zone: "fe80::1%2".
	Addr string `json:"addr"`
	// Count of requests; 0 means 1.
	Count int `json:"count,omitempty"`
	// Timeout of each reply; 0 means 1 s. The next request goes out when the reply has come or is
	// late.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Size of the payload in bytes; 0 means 56, and less than 16 means 16.
	Size int `json:"size,omitempty"`
	// DontFragment makes requests longer than the path's MTU fail instead of being fragmented.
	DontFragment bool `json:"dont_fragment,omitempty"`
	// UntilFirst ends the series at the first reply.
	UntilFirst bool `json:"until_first,omitempty"`
}

// PingResult counts requests and replies.
type PingResult struct {
	Sent     int `json:"sent"`
	Received int `json:"received"`
	// Min, Avg and Max are round-trip times.
	Min time.Duration `json:"min"`
	Avg time.Duration `json:"avg"`
	Max time.Duration `json:"max"`
}

// The types of RFC 792 and RFC 4443, and the length of both headers.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	icmpHeader               = 8
)

// SendPing sends the series. It needs CAP_NET_RAW. It returns an error if there is no reply at all;
// single lost replies are not an error.
func SendPing(ctx context.Context, p Ping) (PingResult, error) {
	var res PingResult
	addr, err := netip.ParseAddr(p.Addr)
	if err != nil {
		return res, fmt.Errorf("ping: %w", err)
	}
	e, err := openEcho(addr, p)
	if err != nil {
		return res, fmt.Errorf("ping %s: %w", addr, err)
	}
	defer e.conn.Close()
	defer context.AfterFunc(ctx, func() { _ = e.conn.SetDeadline(time.Unix(1, 0)) })()

	var total time.Duration
	var last error
	for res.Sent < max(1, p.Count) && ctx.Err() == nil {
		rtt, err := e.once(ctx, uint16(res.Sent))
		res.Sent++
		if err != nil {
			last = err
			continue
		}
		if res.Received == 0 || rtt < res.Min {
			res.Min = rtt
		}
		res.Received++
		res.Max = max(res.Max, rtt)
		total += rtt
		res.Avg = total / time.Duration(res.Received)
		if p.UntilFirst {
			break
		}
	}
	if res.Received == 0 {
		return res, fmt.Errorf("ping %s: no reply to %d requests: %w",
			addr, res.Sent, errors.Join(context.Cause(ctx), last))
	}
	return res, nil
}

type echo struct {
	conn           *net.IPConn
	to             *net.IPAddr
	request, reply byte
	timeout        time.Duration
	packet, buf    []byte
}

func openEcho(addr netip.Addr, p Ping) (*echo, error) {
	network, e := "ip4:icmp", &echo{request: echoRequest4, reply: echoReply4}
	if addr.Is6() {
		network, e.request, e.reply = "ip6:ipv6-icmp", echoRequest6, echoReply6
	}
	conn, err := net.ListenIP(network, nil)
	if err != nil {
		return nil, err
	}
	if p.DontFragment {
		if err := dontFragment(conn, addr.Is6()); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	size := p.Size
	if size == 0 {
		size = 56
	}
	size = min(max(size, 16), 65000)
	e.conn, e.to, e.timeout = conn, &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}, p.Timeout
	if e.timeout <= 0 {
		e.timeout = time.Second
	}
	e.packet, e.buf = make([]byte, icmpHeader+size), make([]byte, 1<<16)
	return e, nil
}

// dontFragment sets what ip(7) and ipv6(7) call path MTU discovery to "do", which
// refuses to send longer packets and never splits them.
func dontFragment(conn *net.IPConn, v6 bool) error {
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if v6 {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(err, setErr)
}

// once sends one request with new random bytes that identify its reply: a raw socket receives all
// ICMP packets of the host.
func (e *echo) once(ctx context.Context, seq uint16) (time.Duration, error) {
	_, _ = rand.Read(e.packet[icmpHeader:])
	e.packet[0], e.packet[1] = e.request, 0
	copy(e.packet[4:6], e.packet[icmpHeader:]) // the identifier
	binary.BigEndian.PutUint16(e.packet[6:], seq)
	binary.BigEndian.PutUint16(e.packet[2:], 0)
	if e.request == echoRequest4 { // the kernel fills in the ICMPv6 checksum
		binary.BigEndian.PutUint16(e.packet[2:], checksum(e.packet))
	}
	start := time.Now()
	if err := e.conn.SetDeadline(start.Add(e.timeout)); err != nil {
		return 0, err
	}
	if err := context.Cause(ctx); err != nil { // which ended before the deadline was set again
		return 0, err
	}
	if _, err := e.conn.WriteTo(e.packet, e.to); err != nil {
		// errors such as ENETUNREACH come at once, and may be temporary
		_ = sleep(ctx, min(e.timeout, 100*time.Millisecond))
		return 0, err
	}
	for {
		n, _, err := e.conn.ReadFrom(e.buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("timeout after %s", e.timeout)
		}
		if err != nil {
			return 0, err
		}
		if n == len(e.packet) && e.buf[0] == e.reply && string(e.buf[4:n]) == string(e.packet[4:]) {
			return time.Since(start), nil
		}
	}
}

// checksum is the internet checksum of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
