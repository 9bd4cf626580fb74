package fastpath

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// A port is a tap with a packet socket and a fast path.
type port struct {
	queue, socket *os.File
	files         []*os.File
	table         *Table
}

func newPort(t *testing.T, ns *netns.NS, name string) *port {
	t.Helper()
	nstest.RequireTCX(t)
	tap, err := tun.Create(ns, name, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.Close() })
	h := nstest.Handle(t, ns)
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, fd := &port{queue: tap.Queues()[0]}, -1
	if err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	p.socket = os.NewFile(uintptr(fd), "socket")
	if p.files, err = Open(ns, link.Attrs().Index, p.socket, []byte{unix.IPPROTO_SCTP}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		fdpass.CloseAll(p.files)
		_ = p.socket.Close()
	})
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	if p.table, err = OpenTable(p.files); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.table.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// got reports whether one of the frames that the socket has received is that one. It waits for
// none.
func (p *port) got(frame []byte) bool {
	b := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(int(p.socket.Fd()), b, unix.MSG_DONTWAIT)
		if err != nil {
			return false
		}
		if slices.Equal(b[:n], frame) {
			return true
		}
	}
}

var here, there = [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}

// frame returns an IPv4 packet of that protocol between the two stations.
func frame(protocol byte) []byte {
	ip := append([]byte{0x45, 0, 0, 46, 0, 0, 0, 0, 64, protocol}, make([]byte, 36)...)
	return slices.Concat(there[:], here[:], []byte{8, 0}, ip)
}

// TestLiveTargets has a table's frames leave by another port's device, but not by one in another
// network namespace that has the same index.
func TestLiveTargets(t *testing.T) {
	ns, elsewhere := nstest.New(t), nstest.New(t)
	p, near := newPort(t, ns, "t0"), newPort(t, ns, "t1")
	newPort(t, elsewhere, "t0")
	far := newPort(t, elsewhere, "t1")
	f := frame(unix.IPPROTO_UDP)
	write := func(frame []byte) {
		t.Helper()
		if _, err := p.queue.Write(append(make([]byte, 10), frame...)); err != nil {
			t.Fatal(err)
		}
	}
	for i, to := range []*port{near, far} {
		begin := time.Now()
		place, err := to.table.Place()
		if err == nil {
			err = errors.Join(p.table.SetTarget(0, place), place.Close(), p.table.PutSource(here),
				p.table.PutTarget(there, Target{MTU: 1500}))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("a target takes %v", time.Since(begin))
		write(f)
		if got, want := p.got(f), to == far; got != want {
			t.Errorf("the socket has received the frame: %v, want %v", got, want)
		}
		if frames, bytes, err := p.table.Count(0); err != nil || frames != 1 || bytes != uint64(len(f)) {
			t.Errorf("target %d: %d frames, %d bytes, %v", i, frames, bytes, err)
		}
		for range 2 { // it tells once
			seen, err := p.table.SourceSeen(here)
			also, err2 := p.table.TargetSeen(there)
			if want := to == near; seen != want || also != want || err != nil || err2 != nil {
				t.Errorf("target %d: the addresses were seen: %v, %v, %v, %v", i, seen, also, err, err2)
			}
			near = nil
		}
	}
	if err := errors.Join(p.table.RemoveTarget(there), p.table.RemoveTarget(there)); err != nil {
		t.Error(err)
	}
	for protocol, want := range map[byte]bool{unix.IPPROTO_UDP: true, unix.IPPROTO_SCTP: false} {
		write(frame(protocol))
		if got := p.got(frame(protocol)); got != want {
			t.Errorf("protocol %d: the socket receives it: %v", protocol, got)
		}
	}
}

// TestLiveWhatASwitchMayNot tries what a switch that has been taken over might.
func TestLiveWhatASwitchMayNot(t *testing.T) {
	p := newPort(t, nstest.New(t), "t0")
	fd, err := fdpass.DuplicateFD(p.table.place)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), place{Device: 1}); !errors.Is(err, unix.EPERM) {
		t.Errorf("change the place of a port: %v", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := p.table.SetTarget(0, null); err == nil {
		t.Error("a file that is no place is a target")
	}
	if err := p.table.SetTarget(0, p.files[2]); err == nil {
		t.Error("a map that is no place is a target")
	}
	for i, files := range [][]*os.File{
		p.files[:4], {null, null, null, null, null}, {p.files[2], p.files[1], p.files[0], p.files[3], p.files[4]},
	} {
		if table, err := OpenTable(files); err == nil {
			t.Errorf("case %d: other files make a table", i)
			_ = table.Close()
		}
	}
}
