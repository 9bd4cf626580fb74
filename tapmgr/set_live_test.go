package tapmgr_test

import (
	"encoding/binary"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// set changes a guest's net0 by edit.
func (h *host) set(g *guest, edit func(*nic.Spec)) (nic.ChangeResult, error) {
	return h.setNIC(g, "net0", edit)
}

func (h *host) setNIC(g *guest, id string, edit func(*nic.Spec)) (nic.ChangeResult, error) {
	return h.Set(h.context(20*time.Second), nic.Target{VM: g.name}, id, func(now nic.Spec) (nic.Spec, error) {
		edit(&now)
		return now, nil
	})
}

// A trial is a change of a guest's net0 and the way back, with the NIC's seat then.
type trial struct {
	there, back  func(*nic.Spec)
	seat         func() string
	then, before string
	switches     []string // that the process which is killed knows
}

// seat describes where a tap is, and how.
func (h *host) seat(name string) string {
	h.Helper()
	l := h.link(name)
	master := "none"
	if br, err := h.nl.LinkByIndex(l.Master); err == nil {
		master = br.Name
	}
	words := []string{master}
	if l.Port != nil && l.Port.Isolated {
		words = append(words, "isolated")
	}
	if !l.Carrier {
		words = append(words, "no carrier")
	}
	return strings.Join(words, ", ")
}

// wants demands that the NIC is at that seat, and that check finds nothing.
func (h *host) wants(what, got, seat string) {
	h.Helper()
	if got != seat {
		h.Errorf("%s: %s, want %s", what, got, seat)
	}
	if got := h.check(); len(got) != 0 {
		h.Errorf("%s: check finds %+v", what, got)
	}
}

// TestLiveSet changes a NIC, whose device and index stay.
func TestLiveSet(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	g := h.empty()
	n := h.attach(g.spec("net0"))
	index := h.link(n.Interface).Index
	names := h.try(g, trial{
		there: func(s *nic.Spec) { s.Bridge, s.Port.Isolated, s.LinkDown = "br1", true, true },
		back:  func(s *nic.Spec) { s.Bridge, s.Port.Isolated, s.LinkDown = "br0", false, false },
		seat:  func() string { return h.seat(n.Interface) },
		then:  "br1, isolated, no carrier", before: "br0",
	})
	for _, want := range []string{"record", "set_link", "bridge", "carrier", "announce", "verify"} {
		if !slices.Contains(names, want) {
			t.Errorf("steps %q lack %q", names, want)
		}
	}
	if now := h.link(n.Interface).Index; now != index {
		t.Errorf("the tap's index was %d, and is %d", index, now)
	}
}

// try makes a change, and fails and kills it at each of its steps, whose names it returns. After a
// fault all is as it was. After a kill check says so, and reconcile or the same change completes
// it.
func (h *host) try(g *guest, c trial) (names []string) {
	h.Helper()
	names = h.stepNamesOf(func() error { _, err := h.set(g, c.there); return err })
	wanted := h.changed(g, c.there)
	h.faultAtEach(names, func() {
		h.Run = nil
		h.wants("after a fault", c.seat(), c.before)
	}, func() error { _, err := h.set(g, c.there); return err })
	for i, name := range names {
		cmd := h.command(order{
			Spec: wanted, Set: true, KillAt: name, After: true, Switches: c.switches, Libvirt: h.Libvirt,
			Networks: h.Host().Networks,
		})
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			h.Fatalf("%s: %v: %s", name, err, out)
		}
		if got := h.check(); name != "verify" && (len(got) == 0 || h.states(g) != nic.Changing) {
			h.Errorf("killed after %s: state %s, check finds %+v", name, h.states(g), got)
		}
		if i%2 == 0 {
			h.settled()
		} else if _, err := h.set(g, c.there); err != nil {
			h.Error(err)
		}
		h.wants("killed after "+name, c.seat(), c.then)
		if _, err := h.set(g, c.back); err != nil {
			h.Fatal(err)
		}
		h.wants("back after "+name, c.seat(), c.before)
	}
	if res, err := h.set(g, c.back); err != nil || res.Changed || len(res.Changes) > 0 {
		h.Errorf("the same again: %+v, %v", res, err)
	}
	return names
}

// changed returns net0 as edit would change it.
func (h *host) changed(g *guest, edit func(*nic.Spec)) (wanted nic.Spec) {
	h.Helper()
	h.stepNamesOf(func() error {
		_, err := h.set(g, func(s *nic.Spec) { edit(s); wanted = *s })
		return err
	})
	return wanted
}

func (h *host) states(g *guest) nic.State {
	h.Helper()
	all, err := h.List(g.name)
	if err != nil || len(all) == 0 {
		h.Fatal(all, err)
	}
	return all[0].State
}

// TestLiveSetRefuses: what the guest would notice is refused with the reason, and changes nothing.
func TestLiveSetRefuses(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1", MTU: 1400})
	g := h.empty()
	n := h.attach(g.spec("net0"))
	for what, edit := range map[string]func(*nic.Spec){
		"driver for the device":    func(s *nic.Spec) { s.Model = "e1000" },
		"opens a NIC's queues":     func(s *nic.Spec) { s.Queues = 2 },
		"has read its address":     func(s *nic.Spec) { s.MAC = nic.DefaultMAC("other", "net0") },
		"drop what it still sends": func(s *nic.Spec) { s.MTU = 1300 },
		"carries at most 1400":     func(s *nic.Spec) { s.Bridge = "br1" },
		"no such network device":   func(s *nic.Spec) { s.Bridge = "br7" },
	} {
		if _, err := h.set(g, edit); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want %q", err, what)
		}
	}
	h.wants("refused", h.seat(n.Interface), "br0")
	spec := g.spec("net0")
	spec.Port.Isolated = true
	_, err := h.Attach(h.context(20*time.Second), spec)
	want := "vmnet set --vm " + g.name + " --nic net0 --isolated"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestLiveSetMoves moves a guest that answers a ping each 10 ms to another bridge of its LAN, whose
// switches have to learn where the guest is now. It tells how many answers are missing.
func TestLiveSetMoves(t *testing.T) {
	h := newHost(t)
	h.twoBridges()
	g := h.booted(testvm.Config{})
	n := h.attach(g.spec("net0"))
	h.reach(g, n, guestAddr)
	p := h.pinging(h.ns, guestAddr)
	p.answered(1)
	sent := p.sent.Load()
	for _, edit := range []func(*nic.Spec){
		func(s *nic.Spec) { s.Bridge, s.Port.Isolated = "br1", true },
		func(s *nic.Spec) { s.Bridge, s.Port.Isolated = "br0", false },
	} {
		if _, err := h.set(g, edit); err != nil {
			t.Error(err)
		}
		p.answered(p.sent.Load() + 20)
	}
	all := p.sent.Load() - sent
	lost := p.missing()
	t.Logf("two moves: %d of %d answers are missing (10 ms each)", lost, all)
	if lost > 300 {
		t.Errorf("%d answers are missing", lost)
	}

	// A NIC that is attached with its link down works once a set raises it.
	p.stop()
	spec := g.spec("net1")
	spec.LinkDown = true
	n = h.attach(spec)
	if got := g.carrier(h, n.MAC); got != "0" {
		t.Errorf("the guest sees carrier %s of a NIC whose link is down", got)
	}
	if _, err := h.setNIC(g, "net1", func(s *nic.Spec) { s.LinkDown = false }); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Guest.Exec(h.context(10*time.Second), "ip", "addr", "flush", "to", guestAddr); err != nil {
		t.Fatal(err)
	}
	h.reach(g, n, guestAddr)
}

// carrier returns what the guest says of its NIC's carrier.
func (g *guest) carrier(h *host, mac string) string {
	h.Helper()
	ctx := h.context(30 * time.Second)
	link, err := g.Guest.WaitNIC(ctx, mac)
	if err == nil {
		_, err = g.Guest.Exec(ctx, "ip", "link", "set", link.Name, "up")
	}
	var out string
	if err == nil {
		out, err = g.Guest.Exec(ctx, "cat", "/sys/class/net/"+link.Name+"/carrier")
	}
	if err != nil {
		h.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// twoBridges connects br0 to a new bridge br1.
func (h *host) twoBridges() {
	h.Helper()
	h.bridge(bridge.Config{Name: "br1"})
	h.cable()
	for name, br := range map[string]string{"c0": "br0", "c1": "br1"} {
		h.ip("link", "set", name, "master", br)
	}
}

// BenchmarkMove moves a guest that answers a ping each 10 ms between two bridges, again and again,
// and reports for how long it does not answer.
func BenchmarkMove(b *testing.B) {
	const rounds = 20
	h := newHost(b)
	h.twoBridges()
	g := h.booted(testvm.Config{})
	h.reach(g, h.attach(g.spec("net0")), guestAddr)
	var gaps []float64
	for i := range rounds {
		p := h.pinging(h.ns, guestAddr)
		p.answered(1)
		to := []string{"br1", "br0"}[i%2]
		if _, err := h.set(g, func(s *nic.Spec) { s.Bridge = to }); err != nil {
			b.Fatal(err)
		}
		p.answered(p.sent.Load() + 20)
		p.stop() // the next one would take its answers for its own
		gaps = append(gaps, p.gap())
	}
	slices.Sort(gaps)
	b.Logf("%v ms", gaps)
	b.ReportMetric(gaps[rounds/2], "ms-median")
	b.ReportMetric(gaps[rounds-1], "ms-longest")
	b.ReportMetric(0, "ns/op")
}

// pinger sends an echo request each 10 ms.
type pinger struct {
	h    *host
	stop func()
	sent atomic.Int64
	mu   sync.Mutex
	got  map[int64]bool // by sequence number, from 1
}

func (h *host) pinging(ns *netns.NS, addr string) *pinger {
	h.Helper()
	var conn net.PacketConn
	err := ns.Do(func() (err error) { conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0"); return err })
	if err != nil {
		h.Fatal(err)
	}
	p := &pinger{h: h, got: map[int64]bool{}}
	var done sync.WaitGroup
	stop := make(chan struct{})
	p.stop = sync.OnceFunc(func() { close(stop); _ = conn.Close(); done.Wait() })
	h.Cleanup(p.stop)
	done.Go(func() {
		b := make([]byte, 1500)
		for {
			size, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if size >= 16 && b[0] == 0 { // an echo reply
				p.mu.Lock()
				p.got[int64(binary.BigEndian.Uint64(b[8:]))] = true
				p.mu.Unlock()
			}
		}
	})
	done.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			b := make([]byte, 16)
			b[0] = 8 // an echo request
			binary.BigEndian.PutUint64(b[8:], uint64(p.sent.Add(1)))
			var sum uint32
			for i := 0; i < len(b); i += 2 {
				sum += uint32(binary.BigEndian.Uint16(b[i:]))
			}
			binary.BigEndian.PutUint16(b[2:], ^uint16(sum>>16+sum))
			_, _ = conn.WriteTo(b, &net.IPAddr{IP: net.ParseIP(addr)})
		}
	})
	return p
}

// answered waits for the answer to the request of that number, or to a later one.
func (p *pinger) answered(number int64) {
	p.h.Helper()
	nstest.Eventually(p.h, 30*time.Second, "the guest answers", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for n := range p.got {
			if n >= number {
				return true
			}
		}
		return false
	})
}

// missing returns how many requests before the last one that was answered have no answer.
func (p *pinger) missing() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(slices.Max(slices.Collect(maps.Keys(p.got)))) - len(p.got)
}
