package tapmgr_test

import (
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/netns"
	"vmnet/internal/nstest"
	"vmnet/internal/rtnl"
	"vmnet/internal/tun"
	"vmnet/macvtap"
	"vmnet/testvm/lab"
	"vmnet/testvm/traffic"
)

const standInA = "10.8.0.2"

// standIn is a guest that need not boot: an IP stack in a netns, between whose tap and an
// ipvtap this process carries the frames, as a VMM does.
type standIn struct {
	ns   *netns.NS
	dev  *macvtap.Device
	came atomic.Int64 // frames out of the ipvtap's queue
	end  func()
}

func (h *host) standIn(mode, flag, addr string) *standIn {
	h.Helper()
	lower := h.lower()
	prefix := netip.MustParsePrefix(addr + "/24")
	dev, err := macvtap.Create(h.nl, macvtap.Config{
		Kind: macvtap.IPVtap, Name: "guest", Lower: lower, Mode: mode, Flag: flag, Addrs: []netip.Prefix{prefix},
	})
	if err != nil {
		h.Fatal(err)
	}
	s := &standIn{ns: nstest.New(h), dev: dev}
	tap, tapErr := tun.Create(s.ns, "eth0", false)
	if err := errors.Join(tapErr, dev.OpenQueue(), dev.AddAddr(prefix), dev.Set(rtnl.AllMulti(true)), dev.Up()); err != nil {
		h.Fatal(err)
	}
	arp := "on"
	if mode != "l2" {
		arp = "off"
	}
	h.ipIn(s.ns, "link", "set", "eth0", "address", lower.MAC.String(), "arp", arp, "up")
	h.ipIn(s.ns, "addr", "add", prefix.String(), "dev", "eth0")
	inside, outside := h.pollable(tap.Queues()[0]), h.pollable(dev.Queues()[0])
	go carry(inside, outside, new(atomic.Int64))
	go carry(outside, inside, &s.came)
	s.end = func() {
		if err := errors.Join(inside.Close(), outside.Close(), tap.Close(), dev.Delete(), dev.Close()); err != nil {
			h.Error(err)
		}
	}
	return s
}

func (h *host) lower() *rtnl.Link {
	h.Helper()
	l, err := h.nl.Link("eth0")
	if err != nil {
		h.Fatal(err)
	}
	return l
}

// pollable is a copy of a queue whose Close ends a Read.
func (h *host) pollable(queue *os.File) *os.File {
	h.Helper()
	fd, err := syscall.Dup(int(queue.Fd()))
	if err == nil {
		err = syscall.SetNonblock(fd, true)
	}
	if err != nil {
		h.Fatal(err)
	}
	return os.NewFile(uintptr(fd), queue.Name())
}

func carry(from, to *os.File, count *atomic.Int64) {
	b := make([]byte, 1<<17)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		count.Add(1)
		_, _ = to.Write(b[:n]) // what is not taken is lost, as on a wire
	}
}

// answers tells whether a ping from a netns is answered.
func (h *host) answers(from *netns.NS, addr string, patience time.Duration) bool {
	h.Helper()
	return from.Do(func() error {
		_, err := traffic.SendPing(h.context(patience), traffic.Ping{Addr: addr, Count: 5, Timeout: patience / 5, UntilFirst: true})
		return err
	}) == nil
}

// TestLabIPvtapInL3SReceivesNothing is why macvtap refuses that mode: where it fails, a newer
// kernel has changed that, and the mode may be allowed.
func TestLabIPvtapInL3SReceivesNothing(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	h.ip("addr", "add", lowerAddr+"/24", "dev", "eth0")
	h.farKnows(standInA)
	g := h.standIn("l3", "", standInA)
	defer g.end()
	if !h.answers(g.ns, farAddr, 5*time.Second) || !h.answers(h.far, standInA, 5*time.Second) || g.came.Load() < 2 {
		t.Fatalf("mode l3: %d frames came, want a reply and a request", g.came.Load())
	}
	before := g.came.Load()
	const modeL3S = 2 // IPVLAN_MODE_L3S
	if err := g.dev.NL().Change("ipvtap", g.dev.Link.Index, rtnl.IPVlanMode(modeL3S)); err != nil {
		t.Fatal(err)
	}
	if h.answers(g.ns, farAddr, time.Second) {
		t.Error("mode l3s: the guest got a reply")
	}
	// The kernel's own stack answers in the guest's place.
	if !h.answers(h.far, standInA, 5*time.Second) {
		t.Error("mode l3s: the ping from outside was not even answered by the kernel")
	}
	if n := g.came.Load() - before; n != 0 {
		t.Errorf("mode l3s: %d frames came", n)
	}
}

// farKnows makes the outside send to a guest without asking, as mode l3 needs it.
func (h *host) farKnows(addr string) {
	h.Helper()
	h.farIP("neigh", "replace", addr, "lladdr", h.lower().MAC.String(), "dev", "switch0")
}
