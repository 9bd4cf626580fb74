package radv

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// Times between advertisements.
const (
	// The next unsolicited one comes after a random time between these (RFC 4861, 6.2.1).
	least, most = 20 * time.Second, 60 * time.Second
	// soon is the time between the first ones.
	soon, initial = 2 * time.Second, 3
	// retry follows a failure: an address of a new link is usable after a second.
	retry = 200 * time.Millisecond
	// between is the least between two that all guests get (MIN_DELAY_BETWEEN_RAS).
	between = 3 * time.Second
	// pause follows each solicitation that is read, so that a flood of them costs little.
	pause = 10 * time.Millisecond
)

// Send sends advertisements on the link of the two descriptors, which Open has opened, until ctx
// ends. Then it takes back what they said, and closes the descriptors.
func Send(ctx context.Context, p Params, packets, group int) error {
	s, err := newSocket(packets, group)
	if err != nil {
		return err
	}
	asked := make(chan question)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); s.listen(asked, stop) }()
	(&sender{params: p, socket: s}).run(ctx, asked)
	close(stop)
	err = s.close()
	<-ended
	return err
}

// question is a guest's solicitation.
type question struct {
	from netip.Addr
	mac  net.HardwareAddr
}

// listen passes on the solicitations that arrive, until stop is closed.
func (s *socket) listen(asked chan<- question, stop <-chan struct{}) {
	b := make([]byte, maxPacket)
	for {
		n, mac, err := s.receive(b)
		if from, ok := solicitation(b[:max(n, 0)]); err == nil && ok {
			select {
			case asked <- question{from, mac}:
			case <-stop:
				return
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
	}
}

// sender decides when to send.
type sender struct {
	params Params
	socket *socket
	sent   int       // advertisements to all guests
	last   time.Time // when the last one was sent
}

func (s *sender) run(ctx context.Context, asked <-chan question) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			_ = s.send(allHosts, multicastMAC(allHosts), true) // the link may have gone first
			return
		case <-timer.C:
			timer.Reset(s.toAll())
		case q := <-asked:
			if time.Since(s.last) >= between {
				timer.Reset(s.toAll())
			} else if q.from.IsLinkLocalUnicast() && q.mac != nil {
				_ = s.send(q.from, q.mac, false) // it asks again
			} else {
				timer.Reset(between - time.Since(s.last))
			}
		}
	}
}

// toAll sends to all guests, and returns when to do so again.
func (s *sender) toAll() time.Duration {
	if err := s.send(allHosts, multicastMAC(allHosts), false); err != nil {
		return retry // nobody is there yet, or the link is being set up
	}
	s.last = time.Now()
	s.sent++
	return s.next()
}

// next returns the time until the next unsolicited advertisement.
func (s *sender) next() time.Duration {
	if s.sent < initial {
		return soon
	}
	return least + rand.N(most-least)
}

func (s *sender) send(to netip.Addr, mac net.HardwareAddr, end bool) error {
	own, from, mtu, err := s.socket.link()
	if err != nil {
		return err
	}
	message := s.params.advertisement(own, mtu, end)
	return errors.Join(err, s.socket.send(packet(from, to, message), mac))
}

// multicastMAC returns the Ethernet address of a group (RFC 2464, 7).
func multicastMAC(group netip.Addr) net.HardwareAddr {
	b := group.As16()
	return append(net.HardwareAddr{0x33, 0x33}, b[12:]...)
}
