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
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// set changes a guest's net0 by edit.
func (h *host) set(g *guest, edit func(*nic.Spec)) (nic.ChangeResult, error) {
	return h.Set(h.context(20*time.Second), nic.Target{VM: g.name}, "net0", func(now nic.Spec) (nic.Spec, error) {
		edit(&now)
		return now, nil
	})
}

// moved is a change of everything that a tap of a bridge can change, without a VLAN, and back.
func moved(s *nic.Spec)  { s.Bridge, s.Port.Isolated, s.LinkDown = "br1", true, true }
func former(s *nic.Spec) { s.Bridge, s.Port.Isolated, s.LinkDown = "br0", false, false }

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
func (h *host) wants(what, name, seat string) {
	h.Helper()
	if got := h.seat(name); got != seat {
		h.Errorf("%s: %s, want %s", what, got, seat)
	}
	if got := h.check(); len(got) != 0 {
		h.Errorf("%s: check finds %+v", what, got)
	}
}

// TestLiveSet changes a NIC, whose device and index stay, and fails and kills the change at each
// step. After a fault all is as it was.
func TestLiveSet(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	g := h.empty()
	n := h.attach(g.spec("net0"))
	index := h.link(n.Interface).Index
	names := h.stepNamesOf(func() error { _, err := h.set(g, moved); return err })
	for _, want := range []string{"record", "set_link", "bridge", "carrier", "announce", "verify"} {
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+want+" ") {
			t.Errorf("steps %q lack %q", names, want)
		}
	}
	h.faultAtEach(names, func() {
		h.Run = nil
		h.wants("after a fault", n.Interface, "br0")
	}, func() error { _, err := h.set(g, moved); return err })
	h.killedAtEach(g, names, n.Interface)
	if res, err := h.set(g, former); err != nil || res.Changed || len(res.Changes) > 0 {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	if now := h.link(n.Interface).Index; now != index {
		t.Errorf("the tap's index was %d, and is %d", index, now)
	}
}

// killedAtEach has SIGKILL end a process that makes the change moved, after each of its steps. Then
// check says so, and reconcile or the same change completes it.
func (h *host) killedAtEach(g *guest, names []string, tap string) {
	h.Helper()
	for i, name := range names {
		cmd := h.command(order{Spec: g.spec("net0"), Move: true, KillAt: name, After: true})
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			h.Fatalf("%s: %v: %s", name, err, out)
		}
		if got := h.check(); name != "verify" && (len(got) == 0 || h.states(g) != nic.Changing) {
			h.Errorf("killed after %s: state %s, check finds %+v", name, h.states(g), got)
		}
		if i%2 == 0 {
			_, err = h.Reconcile(h.context(20*time.Second), false)
		} else {
			_, err = h.set(g, moved)
		}
		if err != nil {
			h.Error(err)
		}
		h.wants("killed after "+name, tap, "br1, isolated, no carrier")
		if _, err := h.set(g, former); err != nil {
			h.Fatal(err)
		}
		h.wants("back after "+name, tap, "br0")
	}
}

func (h *host) states(g *guest) nic.State {
	h.Helper()
	all, err := h.List(g.name)
	if err != nil || len(all) != 1 {
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
		"driver for the device":  func(s *nic.Spec) { s.Model = "e1000" },
		"opens a NIC's queues":   func(s *nic.Spec) { s.Queues = 2 },
		"has read its address":   func(s *nic.Spec) { s.MAC = nic.DefaultMAC("other", "net0") },
		"announces the MTU":      func(s *nic.Spec) { s.MTU = 1300 },
		"carries at most 1400":   func(s *nic.Spec) { s.Bridge = "br1" },
		"no such network device": func(s *nic.Spec) { s.Bridge = "br7" },
	} {
		if _, err := h.set(g, edit); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want %q", err, what)
		}
	}
	h.wants("refused", n.Interface, "br0")
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
	h.bridge(bridge.Config{Name: "br1"})
	if err := h.nl.Create("veth", rtnl.Name("c0"), rtnl.VethPeer("c1", h.ns)); err != nil {
		t.Fatal(err)
	}
	for cable, br := range map[string]string{"c0": "br0", "c1": "br1"} {
		l := h.link(cable)
		if err := h.nl.Set(l.Index, rtnl.Master(h.link(br).Index), rtnl.Up(true)); err != nil {
			t.Fatal(err)
		}
	}
	g := h.booted(testvm.Config{})
	n := h.attach(g.spec("net0"))
	h.reach(g, n, guestAddr)
	p := h.pinging(guestAddr)
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
}

// pinger sends an echo request each 10 ms.
type pinger struct {
	h    *host
	sent atomic.Int64
	mu   sync.Mutex
	got  map[int64]bool // by sequence number, from 1
}

func (h *host) pinging(addr string) *pinger {
	h.Helper()
	var conn net.PacketConn
	err := h.ns.Do(func() (err error) { conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0"); return err })
	if err != nil {
		h.Fatal(err)
	}
	p := &pinger{h: h, got: map[int64]bool{}}
	var done sync.WaitGroup
	stop := make(chan struct{})
	h.Cleanup(func() { close(stop); _ = conn.Close(); done.Wait() })
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
