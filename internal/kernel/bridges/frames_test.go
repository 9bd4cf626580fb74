package bridges_test

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
)

// A lan is a bridge br0 whose ports are taps. The test sends and receives their frames.
type lan struct {
	t    *testing.T
	ns   *netns.NS
	c    *rtnl.Conn
	br   *rtnl.Link
	taps map[string]*tun.Tap
	sent uint16 // counts the frames, to distinguish them
}

func newLAN(t *testing.T, cfg bridge.Config) *lan {
	t.Helper()
	ns, c := open(t)
	cfg.Name = "br0"
	return &lan{t: t, ns: ns, c: c, br: create(t, ns, c, cfg), taps: map[string]*tun.Tap{}}
}

// add makes a tap, and makes it a port with those settings.
func (l *lan) add(name, settings string) {
	l.t.Helper()
	dev, link := tap(l.t, l.ns, l.c, name)
	l.taps[name] = dev
	if err := bridges.AddPort(l.c, l.br, link, l.parse(settings)); err != nil {
		l.t.Fatal(err)
	}
}

// set changes a port, and fails the test if reading it returns other settings.
func (l *lan) set(name, settings string) {
	l.t.Helper()
	cfg := l.parse(settings)
	if err := bridges.SetPort(l.c, l.br, l.link(name), cfg); err != nil {
		l.t.Fatal(err)
	}
	if got, want := l.read(name), bridges.Effective(l.br, cfg); !got.Equal(want) {
		l.t.Errorf("%s was set to %q and reads %q", name, want, got)
	}
}

func (l *lan) read(name string) brport.Settings {
	l.t.Helper()
	got, err := bridges.ReadPort(l.c, l.br, l.link(name))
	if err != nil {
		l.t.Fatal(err)
	}
	return got
}

func (l *lan) parse(settings string) brport.Settings {
	l.t.Helper()
	cfg, err := brport.Parse(settings)
	if err != nil {
		l.t.Fatal(err)
	}
	return cfg
}

func (l *lan) link(name string) *rtnl.Link {
	l.t.Helper()
	link, err := l.c.Link(name)
	if err != nil {
		l.t.Fatal(err)
	}
	return link
}

// host is the last byte of a MAC address. everybody is the broadcast address.
type host byte

const everybody host = 0xff

func (h host) mac() []byte {
	if h == everybody {
		return []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	return []byte{0x52, 0x54, 0, 0, 0, byte(h)}
}

const (
	untagged  = 0
	vnetHdr   = 10     // bytes, before each frame of a tap
	etherTest = 0x88b5 // the local experimental EtherType 1 of IEEE 802
	etherVLAN = 0x8100
)

func frame(to, from host, vlan int, id uint16) []byte {
	b := make([]byte, vnetHdr, vnetHdr+64)
	b = append(append(b, to.mac()...), from.mac()...)
	if vlan != untagged {
		b = binary.BigEndian.AppendUint16(b, etherVLAN)
		b = binary.BigEndian.AppendUint16(b, uint16(vlan))
	}
	b = binary.BigEndian.AppendUint16(b, etherTest)
	b = binary.BigEndian.AppendUint16(b, id)
	return b[:cap(b)]
}

// parseFrame parses what frame returns. ok is false for other frames, such as those of the host.
func parseFrame(b []byte) (vlan int, id uint16, ok bool) {
	const typeAt = vnetHdr + 12
	if len(b) < typeAt+8 {
		return 0, 0, false
	}
	rest := b[typeAt:]
	if binary.BigEndian.Uint16(rest) == etherVLAN {
		vlan = int(binary.BigEndian.Uint16(rest[2:]) & 0xfff)
		rest = rest[4:]
	}
	return vlan, binary.BigEndian.Uint16(rest[2:]), binary.BigEndian.Uint16(rest) == etherTest
}

// send makes a port's tap send one frame, and returns the ports that received it and its tag there.
// The kernel delivers within the write (tun_get_user), so after a short wait no more frames come.
func (l *lan) send(port string, to, from host, vlan int) map[string]int {
	l.t.Helper()
	l.sent++
	if _, err := l.taps[port].Queues()[0].Write(frame(to, from, vlan, l.sent)); err != nil {
		l.t.Fatal(err)
	}
	got := map[string]int{}
	for name, b := range l.frames() {
		for _, f := range b {
			vlan, id, ok := parseFrame(f)
			if !ok || id != l.sent {
				continue
			}
			if _, twice := got[name]; twice {
				l.t.Errorf("%s received the frame twice", name)
			}
			got[name] = vlan
		}
	}
	return got
}

// frames reads the frames that the taps received, until none has come for a while.
func (l *lan) frames() map[string][][]byte {
	l.t.Helper()
	const quiet = 50 * time.Millisecond
	var names []string
	var fds []unix.PollFd
	for name, dev := range l.taps {
		names = append(names, name)
		fds = append(fds, unix.PollFd{Fd: int32(dev.Queues()[0].Fd()), Events: unix.POLLIN})
	}
	got := map[string][][]byte{}
	buf := make([]byte, 2048)
	for {
		n, err := unix.Poll(fds, int(quiet.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			l.t.Fatal(os.NewSyscallError("poll", err))
		}
		if n == 0 {
			return got
		}
		for i, fd := range fds {
			if fd.Revents&unix.POLLIN == 0 {
				continue
			}
			n, err := l.taps[names[i]].Queues()[0].Read(buf)
			if err != nil {
				l.t.Fatal(err)
			}
			got[names[i]] = append(got[names[i]], slices.Clone(buf[:n]))
		}
	}
}
