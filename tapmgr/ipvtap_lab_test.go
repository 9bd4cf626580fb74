package tapmgr_test

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
	"vmnet/testvm/traffic"
)

// Addresses of stand-ins.
const (
	standInA = "10.8.0.2"
	standInB = "10.8.0.3"
)

// standIn is a guest that need not boot: an IP stack in a netns, between whose tap and an
// ipvtap this process carries the frames, as a VMM does.
type standIn struct {
	ns   *netns.NS
	dev  *macvlan.Device
	came atomic.Int64 // frames out of the ipvtap's queue
	end  func()
}

func (h *host) standIn(mode, flag, addr string) *standIn {
	h.Helper()
	lower := h.lower()
	prefix := netip.MustParsePrefix(addr + "/24")
	dev, err := macvlan.Create(h.nl, lower, vtap.Config{
		Kind: vtap.IPVtap, Name: "guest", Mode: mode, Flag: flag, Addrs: []netip.Prefix{prefix},
	})
	if err != nil {
		h.Fatal(err)
	}
	s := &standIn{ns: nstest.New(h), dev: dev}
	tap, tapErr := tun.Create(s.ns, "eth0", false)
	if err := errors.Join(tapErr, dev.OpenQueue(), dev.AddAddr(prefix), dev.Set(rtnl.AllMulti(true)),
		dev.Up()); err != nil {
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

// answers reports whether a ping from a netns is answered.
func (h *host) answers(from *netns.NS, addr string, patience time.Duration) bool {
	h.Helper()
	return from.Do(func() error {
		_, err := traffic.SendPing(h.context(patience),
			traffic.Ping{Addr: addr, Count: 5, Timeout: patience / 5, UntilFirst: true})
		return err
	}) == nil
}

// TestLabIPvtapReachability goes through what mode and flag let two guests, the parent device, and
// a peer outside say to each other, without and with a switch that reflects.
func TestLabIPvtapReachability(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	h.ip("addr", "add", lowerAddr+"/24", "dev", "eth0")
	for _, mode := range []string{"l2", "l3"} {
		if mode == "l3" {
			h.knowWithoutARP(standInA)
			h.knowWithoutARP(standInB)
		}
		for _, flag := range []string{"bridge", "private", "vepa"} {
			for _, reflect := range []bool{false, true} {
				h.reflective(reflect)
				h.ipvtapReaches(mode, flag, map[string]bool{
					farAddr:   true,
					standInB:  flag == "bridge" || flag == "vepa" && reflect,
					lowerAddr: reflect, // only by way of the switch
				})
			}
		}
	}
}

func (h *host) ipvtapReaches(mode, flag string, wants map[string]bool) {
	h.Helper()
	a, b := h.standIn(mode, flag, standInA), h.standIn(mode, flag, standInB)
	defer a.end()
	defer b.end()
	for addr, want := range wants {
		patience := nstest.Patience(10 * time.Second)
		if !want {
			patience = time.Second
		}
		if got := h.answers(a.ns, addr, patience); got != want {
			h.Errorf("mode %s, flag %s, want %v: %s answered: %v", mode, flag, wants, addr, got)
		}
	}
}

// knowWithoutARP makes host and outside send to a guest without asking, as mode l3 needs it.
func (h *host) knowWithoutARP(guest string) {
	h.Helper()
	mac := h.lower().MAC.String()
	h.ip("neigh", "replace", guest, "lladdr", mac, "dev", "eth0")
	h.farIP("neigh", "replace", guest, "lladdr", mac, "dev", "switch0")
}

// TestLabIPvtapInL3SReceivesNothing is why macvtap refuses that mode: where it fails, a newer
// kernel has changed that, and the mode may be allowed.
func TestLabIPvtapInL3SReceivesNothing(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	h.ip("addr", "add", lowerAddr+"/24", "dev", "eth0")
	h.knowWithoutARP(standInA)
	g := h.standIn("l3", "", standInA)
	defer g.end()
	soon := nstest.Patience(5 * time.Second)
	if !h.answers(g.ns, farAddr, soon) || !h.answers(h.far, standInA, soon) || g.came.Load() < 2 {
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
	if !h.answers(h.far, standInA, soon) {
		t.Error("mode l3s: the ping from outside was not even answered by the kernel")
	}
	if n := g.came.Load() - before; n != 0 {
		t.Errorf("mode l3s: %d frames came", n)
	}
}

// TestLabIPvtapsShareModeAndFlag proves that the kernel changes living ipvtaps, and that an attach
// does not.
func TestLabIPvtapsShareModeAndFlag(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	h.ip("link", "property", "add", "dev", "eth0", "altname", "uplink")
	a, b := h.empty(), h.empty()
	spec := func(g *guest, mode, flag, addr string) nic.Spec {
		s := g.lowerSpec("net0",
			nic.Lower{Mode: mode, Flag: flag, Addrs: []netip.Prefix{netip.MustParsePrefix(addr + "/24")}})
		s.Lower.Kind = vtap.IPVtap
		return s
	}
	h.attach(spec(a, "l2", "private", standInA))
	for _, c := range []struct{ mode, flag string }{{"", ""}, {"l2", "vepa"}, {"l3", "private"}} {
		_, err := h.Attach(h.context(20*time.Second), spec(b, c.mode, c.flag, standInB))
		if !errors.Is(err, syscall.EBUSY) ||
			!strings.Contains(err.Error(), a.name+"/net0 (use --mode l2 --flag private, or") {
			t.Errorf("mode %q, flag %q: got %v, want the sibling and the cure", c.mode, c.flag, err)
		}
	}
	byAltname := spec(b, "l2", "private", standInB)
	byAltname.Lower.Device = "uplink"
	h.attach(byAltname)
	if res, err := h.Attach(h.context(20*time.Second), spec(a, "l2", "private", standInA)); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
	h.ip("link", "add", "link", "eth0", "name", "foreign", "type", "ipvlan", "mode", "l3s", "vepa")
	if got := h.check(); len(got) != 2 || got[0].What != "mode" || got[0].Found != "l3s" {
		t.Errorf("check: %+v: want both in mode l3s, as the kernel gives the latest's to all", got)
	}
	_, err := h.Attach(h.context(20*time.Second), spec(a, "l2", "private", standInA))
	if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "foreign (detach or remove") {
		t.Errorf("beside an ipvlan in mode l3s: got %v", err)
	}
}

// TestLabIPvtapRenamed: an ipvtap follows its parent device to another name, and is no NIC of
// another netns with such a device.
func TestLabIPvtapRenamed(t *testing.T) {
	lab.Inside(t)
	h, other := newHost(t), newHost(t)
	h.wire()
	other.wire()
	g := h.empty()
	spec := g.lowerSpec("net0",
		nic.Lower{Kind: vtap.IPVtap, Addrs: []netip.Prefix{netip.MustParsePrefix(standInA + "/24")}})
	spec.Lower.Kind = vtap.IPVtap
	h.attach(spec)
	if nics, err := other.List(g.name); err != nil || len(nics) != 0 {
		t.Errorf("in another netns, with an eth0 of that index: %+v, %v", nics, err)
	}
	h.ip("link", "set", "eth0", "down")
	h.ip("link", "set", "eth0", "name", "wan0")
	h.ip("link", "set", "wan0", "up")
	if nics, err := h.List(g.name); err != nil || len(nics) != 1 || nics[0].Source != "wan0" ||
		nics[0].State != nic.Up {
		t.Errorf("list %+v, %v", nics, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check %+v", got)
	}
	if info, err := h.ShowParent(t.Context(), "wan0"); err != nil || len(info.NICs) != 1 {
		t.Errorf("lower %+v, %v", info, err)
	}
	for _, name := range []string{"eth0", "wan0"} {
		spec.Lower.Device = name
		if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || res.Changed ||
			res.NIC.Source != "wan0" {
			t.Errorf("attach to %s again: %+v, %v", name, res, err)
		}
	}
}
