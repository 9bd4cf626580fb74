package why

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"vmnet/internal/kernel/announce"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/sniff"
)

// arp asks at a device who has a guest's address, as a host that wants to use it does (RFC 5227):
// from no address, so that nobody learns one.
func (l *live) arp(ctx context.Context, at *rtnl.Link, n *NIC, a netip.Addr) {
	where := "ARP at " + at.Name
	before, start := l.drops(), time.Now()
	mac, err := l.request(ctx, at, a)
	switch {
	case errors.Is(err, errNoAnswer):
		l.unanswered(where, n, a, Stops, l.since(before, etherARP))
	case err != nil:
		l.note(Step{Where: where, Verdict: Unknown, Why: err.Error(), Cure: "as root: it takes CAP_NET_RAW"})
	case !bytes.Equal(mac, n.mac()):
		l.note(Step{
			Where: where, Verdict: Stops,
			Why:  fmt.Sprintf("%s answers for %s, which is not the guest's %s", mac, a, n.mac()),
			Cure: "give one of them another address",
		})
	default:
		l.note(Step{Where: where, Verdict: Passes, What: fmt.Sprintf("%s is at %s%s", a, mac, after(start))})
	}
}

func after(start time.Time) string {
	return fmt.Sprintf(", answered in %.1f ms", float64(time.Since(start).Microseconds())/1000)
}

// unanswered adds that a probe had no answer, with what the kernel dropped meanwhile.
func (l *live) unanswered(where string, n *NIC, a netip.Addr, v Verdict, drops string) {
	why := fmt.Sprintf("%s does not answer %d requests", a, requests)
	if drops != "" {
		v, why = Stops, why+"; meanwhile the kernel has dropped "+drops
	}
	l.note(Step{
		Where: where, Verdict: v, Why: why,
		Cure: "vmnet capture " + n.Title() + " shows whether they arrive, and whether the guest answers",
	})
}

// request returns the MAC address that answers for a.
func (l *live) request(ctx context.Context, at *rtnl.Link, a netip.Addr) (net.HardwareAddr, error) {
	from := l.sender(at)
	if len(from) != 6 {
		return nil, fmt.Errorf("%s has no MAC address", at.Name)
	}
	socket, err := sniff.Open(l.ns, at.Index)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	r, err := sniff.NewReader(socket)
	if err != nil {
		return nil, err
	}
	everybody := bytes.Repeat([]byte{0xff}, 6)
	frame := arpRequest(append(everybody, from...), from, netip.IPv4Unspecified(), a)
	frame = append(frame, make([]byte, 60-len(frame))...)
	for range requests {
		if err := announce.Send(l.ns, at.Index, frame); err != nil {
			return nil, fmt.Errorf("send at %s: %w", at.Name, err)
		}
		mac, err := awaitARP(ctx, r, a)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return mac, err
		}
	}
	return nil, errNoAnswer
}

// awaitARP waits a moment for an answer.
func awaitARP(ctx context.Context, r *sniff.Reader, a netip.Addr) (net.HardwareAddr, error) {
	if err := r.SetDeadline(time.Now().Add(answerWait)); err != nil {
		return nil, err
	}
	for {
		f, err := r.Next()
		switch {
		case err != nil:
			return nil, err
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case f.Sent:
		default:
			if mac := answers(f.Data, a); mac != nil {
				return mac, nil
			}
		}
	}
}

// answers returns the sender of an ARP reply about a, and nil for other frames.
func answers(frame []byte, a netip.Addr) net.HardwareAddr {
	const addresses, arpLen = 12, 28
	if len(frame) > addresses+4 && binary.BigEndian.Uint16(frame[addresses:]) == etherVLAN {
		frame = frame[4:] // the addresses do not matter
	}
	if len(frame) < addresses+2+arpLen || binary.BigEndian.Uint16(frame[addresses:]) != etherARP {
		return nil
	}
	p := frame[addresses+2:]
	if !bytes.Equal(p[:8], []byte{0, 1, 8, 0, 6, 4, 0, 2}) || !bytes.Equal(p[14:18], a.AsSlice()) {
		return nil
	}
	return net.HardwareAddr(bytes.Clone(p[8:14]))
}

// Types of ICMP and ICMPv6.
const (
	echo4, reply4 = 8, 0
	echo6, reply6 = 128, 129
)

// echo has the host ping a guest. Many guests do not answer that, which is no fault.
func (l *live) echo(ctx context.Context, n *NIC, a netip.Addr) {
	const where = "echo from the host"
	protocol := uint16(etherIPv4)
	if a.Is6() {
		protocol = etherIPv6
	}
	before, start := l.drops(), time.Now()
	err := l.ping(ctx, a)
	switch {
	case errors.Is(err, errNoAnswer):
		l.unanswered(where, n, a, Unknown, l.since(before, protocol))
	case err != nil:
		l.note(Step{Where: where, Verdict: Unknown, Why: err.Error(), Cure: "ping " + a.String()})
	default:
		l.echoes++
		l.note(Step{Where: where, Verdict: Passes, What: a.String() + after(start)})
	}
}

func (l *live) ping(ctx context.Context, a netip.Addr) (err error) {
	network, request, reply := "ip4:icmp", byte(echo4), byte(reply4)
	if a.Is6() {
		network, request, reply = "ip6:ipv6-icmp", echo6, reply6
	}
	var c net.PacketConn
	err = l.ns.Do(func() (err error) {
		c, err = net.ListenPacket(network, "")
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	id := uint16(rand.Uint32())
	for i := range uint16(requests) {
		if _, err := c.WriteTo(echoRequest(request, id, i), &net.IPAddr{IP: a.AsSlice()}); err != nil {
			return err
		}
		err := awaitEcho(ctx, c, a, reply, id)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return errNoAnswer
}

// echoRequest is one of RFC 792 or RFC 4443; the kernel computes the checksum of the latter.
func echoRequest(kind byte, id, sequence uint16) []byte {
	b := []byte{kind, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, sequence)
	if kind == echo4 {
		sum := uint32(0)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	}
	return b
}

func awaitEcho(ctx context.Context, c net.PacketConn, a netip.Addr, reply byte, id uint16) error {
	if err := c.SetReadDeadline(time.Now().Add(answerWait)); err != nil {
		return err
	}
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		switch ip, _ := from.(*net.IPAddr); {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case n >= 8 && b[0] == reply && binary.BigEndian.Uint16(b[4:]) == id && ip != nil && ip.IP.Equal(a.AsSlice()):
			return nil
		}
	}
}
