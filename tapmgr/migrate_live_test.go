package tapmgr_test

import (
	"context"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// A move is how a guest migrates on a host: near is where its neighbours are, from and to make its
// NICs.
type move struct {
	near     *netns.NS
	from, to func(*guest) nic.Spec
	qemu     []string // more arguments of both QEMUs
}

// guarded is a NIC with port security.
func guarded(s nic.Spec) nic.Spec {
	s = prepared(s)
	s.Security.Checks, s.IP = portsec.All, []netip.Addr{netip.MustParseAddr(guestAddr)}
	return s
}

// moves are migrations with port security on both sides: to another bridge of a LAN, and in a VLAN
// to another switch.
var moves = map[string]func(h *host) move{
	"bridges": func(h *host) move {
		h.twoBridges()
		on := func(br string) func(*guest) nic.Spec {
			return func(g *guest) nic.Spec {
				s := guarded(g.spec("net0"))
				s.Bridge = br
				return s
			}
		}
		return move{near: h.ns, from: on("br0"), to: on("br1")}
	},
	"VLAN of switches": func(h *host) move { return h.betweenSwitches(nic.ByTap) },
	"VLAN of switches, memory shared": func(h *host) move {
		return h.betweenSwitches(nic.ByVhostUser).sharing(h)
	},
	"ports of a switch, memory shared": func(h *host) move {
		return h.withinSwitch(nic.ByVhostUser).sharing(h)
	},
	"ports of a switch, by sockets": func(h *host) move { return h.withinSwitch(nic.BySocket) },
}

// sharedMemory makes a migratable guest's memory one that a switch can map.
var sharedMemory = []string{"-object", "memory-backend-memfd,id=mem,size=131080k", "-machine", "memory-backend=mem"}

func (m move) sharing(h *host) move {
	h.sharesRun()
	m.qemu = sharedMemory
	return m
}

// betweenSwitches is a move in a VLAN from one switch to another.
func (h *host) betweenSwitches(by nic.By) move {
	h.Helper()
	a, b := h.runSwitch(), h.runSwitch()
	h.Switches = []string{a.path, b.path}
	h.cable()
	trunk := brport.Settings{Trunk: []brport.VLANRange{{First: vlan, Last: vlan}}}
	for name, s := range map[string]*userSwitch{"c0": a, "c1": b} {
		files, err := endpoint.PacketFiles(h.ns, name)
		if err != nil {
			h.Fatal(err)
		}
		s.addPort(control.Port{
			Name: name, Kind: control.Packet, Device: name, Config: vport.Config{Settings: trunk},
		}, files...)
		fdpass.CloseAll(files)
	}
	inVLAN := func(s *userSwitch) func(*guest) nic.Spec {
		return func(g *guest) nic.Spec {
			spec := guarded(s.on(g, "net0", by))
			spec.Port.VLAN = vlan
			return spec
		}
	}
	return move{near: a.nearIn(vlan), from: inVLAN(a), to: inVLAN(b)}
}

// withinSwitch is a move from one port of a switch to another.
func (h *host) withinSwitch(by nic.By) move {
	h.Helper()
	s := h.runSwitch()
	port := func(g *guest) nic.Spec { return guarded(s.on(g, "net0", by)) }
	return move{near: s.nearIn(0), from: port, to: port}
}

// TestLiveMigrate migrates a guest that answers a ping each 10 ms. The target was prepared and
// aborted before. It tells how long the guest did not answer.
func TestLiveMigrate(t *testing.T) {
	for name, make := range moves {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.migrates(make(h))
		})
	}
}

const vlan = 20

// cable connects c0 and c1.
func (h *host) cable() {
	h.Helper()
	h.ip("link", "add", "c0", "up", "type", "veth", "peer", "name", "c1")
	h.ip("link", "set", "c1", "up")
}

// nearIn is a netns whose tap is an access port of the switch, with the host's address.
func (s *userSwitch) nearIn(vlan int) *netns.NS {
	s.Helper()
	ns := nstest.New(s)
	tap, err := tun.Create(ns, "lan0", false)
	if err != nil {
		s.Fatal(err)
	}
	defer tap.Close()
	s.addPort(control.Port{
		Name: "lan0", Kind: control.Tap, Device: "lan0", Config: vport.Config{Settings: brport.Settings{VLAN: vlan}},
	}, tap.Queues()...)
	s.ipIn(ns, "addr", "add", hostAddr+"/24", "dev", "lan0")
	s.ipIn(ns, "link", "set", "lan0", "up")
	return ns
}

// migrates migrates a guest to a NIC that was prepared.
func (h *host) migrates(m move) {
	h.Helper()
	source := h.leaving(m.from, m.qemu...)
	g := h.target(m.qemu...)
	h.prepare(m.to(g))
	if err := h.abort(g); err != nil {
		h.Fatal(err)
	}
	h.prepare(m.to(g))
	p := h.migrated(m.near, guestAddr, source, g)
	h.Logf("the guest did not answer for %.0f ms", p.gap())
	if got := h.states(g); got != "forwarding" {
		h.Errorf("it is %s", got)
	}
	if _, err := h.Commit(h.context(20*time.Second), nic.Target{VM: source.name}, "", false); err != nil {
		h.Errorf("commit of the source, which has nothing prepared: %v", err)
	}
	if got := h.check(); len(got) > 0 {
		h.Errorf("check finds %+v", got)
	}
	if state := runState(h, source); state != qmp.StateLeft {
		h.Errorf("the source is %s", state)
	}
	if _, err := h.tryDetach(g, 60*time.Second, false); err != nil {
		h.Errorf("detach from the guest that has arrived: %v", err)
	}
}

// leaving is a guest that uses its NIC and is to leave.
func (h *host) leaving(from func(*guest) nic.Spec, qemu ...string) *guest {
	h.Helper()
	g := h.booted(testvm.Config{Name: "S", ExtraArgs: slices.Concat(migratable, qemu)})
	spec := from(g)
	spec.Prepared = false
	if err := g.Guest.UseNIC(h.context(30*time.Second), h.attach(spec).MAC, guestAddr+"/24"); err != nil {
		h.Fatal(err)
	}
	return g
}

// migrated migrates a guest, that near pings at addr, from source to g, where a commit waits for
// it. It tells when the commit's steps were done.
func (h *host) migrated(near *netns.NS, addr string, source, g *guest) *pinger {
	h.Helper()
	p, done := h.stampedMigration(near, addr, source, g)
	for name, at := range done {
		h.Logf("%s: done %v after the record", name, at.Sub(done["record"]).Round(10*time.Microsecond))
	}
	var told struct{ Downtime int }
	h.ask(source, "query-migrate", map[string]any{}, &told)
	h.Logf("QEMU had the guest paused for %d ms of the %.0f ms without an answer", told.Downtime, p.gap())
	return p
}

// stampedMigration is migrated, which also returns when the commit's steps were done.
func (h *host) stampedMigration(near *netns.NS, addr string, source, g *guest) (*pinger, stamps) {
	h.Helper()
	p := h.pinging(near, addr)
	p.answered(1)
	committed, done := make(chan error, 1), stamps{}
	h.Run = done.run
	defer func() { h.Run = nil }()
	uri := "unix:" + filepath.Join(h.TempDir(), "migration")
	h.execute(g, "migrate-incoming", map[string]any{"uri": uri})
	go func() {
		_, err := h.Commit(h.context(60*time.Second), nic.Target{VM: g.name}, "", true)
		committed <- err
	}()
	h.execute(source, "migrate-set-parameters", map[string]any{"downtime-limit": 100, "max-bandwidth": 1 << 30})
	h.execute(source, "migrate", map[string]any{"uri": uri})
	if err := <-committed; err != nil {
		h.Fatal(err)
	}
	nstest.Eventually(h, 60*time.Second, "the guest has arrived", func() bool { // also if nothing was prepared
		return runState(h, g) == qmp.StateRunning
	})
	p.answered(p.sent.Load() + 20)
	return p, done
}

// stamps are when steps were done, by their names.
type stamps map[string]time.Time

func (s stamps) run(ctx context.Context, list []step.Step) error {
	return step.Run(ctx, list, func(ctx context.Context, one step.Step, do func(context.Context) error) error {
		err := do(ctx)
		s[one.Name] = time.Now()
		return err
	})
}

// TestLiveCommitWaits: a commit that waits for its guest mends what others do meanwhile.
func TestLiveCommitWaits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.twoBridges()
	source := h.booted(testvm.Config{Name: "S", Paused: true, ExtraArgs: migratable})
	spec := source.prepared("net0")
	spec.Prepared = false
	h.attach(spec)
	g := h.target()
	spec = g.prepared("net0")
	spec.Bridge = "br1"
	n := h.prepare(spec)
	uri := "unix:" + filepath.Join(t.TempDir(), "migration")
	h.execute(g, "migrate-incoming", map[string]any{"uri": uri})
	waits, committed := make(chan struct{}), make(chan error, 1)
	h.Progress = func(_ tapmgr.ProgressKind, text string) {
		if strings.Contains(text, "has arrived") {
			close(waits)
		}
	}
	go func() {
		_, err := h.Commit(h.context(60*time.Second), nic.Target{VM: g.name}, "", true)
		committed <- err
	}()
	select {
	case <-waits:
	case err := <-committed:
		t.Fatal("commit does not wait: ", err)
	}
	h.ip("link", "set", n.Interface, "nomaster")
	h.execute(source, "migrate", map[string]any{"uri": uri})
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	h.wants("committed", h.seat(n.Interface), "br1")
	if got := h.check(); len(got) > 0 {
		t.Errorf("check finds %+v", got)
	}
}

// gap is the longest time in milliseconds between two answers, by when they were asked for.
func (p *pinger) gap() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.Sorted(maps.Keys(p.got))
	longest := int64(0)
	for i, n := range all[1:] {
		longest = max(longest, n-all[i]-1)
	}
	return float64(longest * 10)
}

// execute runs a command of a guest's monitor.
func (h *host) execute(g *guest, command string, args map[string]any) {
	h.Helper()
	h.ask(g, command, args, nil)
}

// ask is execute for a command that answers.
func (h *host) ask(g *guest, command string, args map[string]any, result any) {
	h.Helper()
	c, err := qmp.Dial(h.context(20*time.Second), g.QMP)
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	if err := c.Execute(h.context(20*time.Second), command, args, result); err != nil {
		h.Fatal(err)
	}
}
