package tapmgr_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// someRates limit all that can be limited; otherRates are a change of them.
var (
	someRates = portrate.Config{
		Up: portrate.Limit{Bits: 8e6, Packets: 100e3}, Down: portrate.Limit{Bits: 1e9, Packets: 200e3}, Burst: 64 << 10,
	}
	otherRates = portrate.Config{Up: portrate.Limit{Packets: 500}, Down: portrate.Limit{Bits: 10e9}}
)

func limited(s *nic.Spec)   { s.Rates = otherRates }
func unlimited(s *nic.Spec) { s.Rates = portrate.Config{} }

// limits demands that the kernel limits a NIC's device so, and that check finds nothing.
func (h *host) limits(what string, g *guest, want portrate.Config) {
	h.Helper()
	n := h.listedOne(g)
	if n.Rates != want {
		h.Errorf("%s: list has %v, want %v", what, n.Rates, want)
	}
	nl := h.nl
	if n.Type != nic.TypeTap {
		var err error
		if nl, err = rtnl.Open(h.netnsOf(g.name, "net0")); err != nil {
			h.Fatal(err)
		}
		defer nl.Close()
	}
	l, err := nl.Link(n.Interface)
	if err != nil {
		h.Fatal(err)
	}
	if s, err := ratelimit.Read(nl, l); err != nil || !s.Is(want) {
		h.Errorf("%s: the kernel has %v, %v, want %v", what, s, err, want)
	}
	if got := h.check(); len(got) != 0 {
		h.Errorf("%s: check finds %+v", what, got)
	}
}

// noShaper demands that the host has none.
func (h *host) noShaper(when string) {
	h.Helper()
	if all, err := h.nl.Links("ifb", 0); err != nil || len(all) != 0 {
		h.Errorf("%s: %d ifb devices, %v", when, len(all), err)
	}
}

// ratePlaces are where a NIC with rates can be.
var ratePlaces = map[string]func(h *host, spec *nic.Spec){
	"tap":    func(*host, *nic.Spec) {},
	"shaped": func(_ *host, spec *nic.Spec) { spec.Rates.Shape = true },
	"macvtap": func(h *host, spec *nic.Spec) {
		h.wire()
		spec.Bridge, spec.Lower = "", (&guest{}).lowerSpec("net0", nic.Lower{}).Lower
	},
}

// TestLiveRates attaches a NIC with rates, changes them and takes them back, with a fault and a
// kill at each step.
func TestLiveRates(t *testing.T) {
	for name, place := range ratePlaces {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			g := h.empty()
			spec := g.spec("net0")
			spec.Rates = someRates
			place(h, &spec)
			rates, changed := spec.Rates, otherRates
			limited := func(s *nic.Spec) { s.Rates = changed }
			names := h.stepNames(spec)
			at := slices.Index(names, "rates")
			puts := slices.IndexFunc(names, func(s string) bool { return s == "port" || s == "up" })
			if at < 0 || puts < at {
				t.Fatalf("the steps are %q", names)
			}
			h.faultAtEach(names[at:puts+1], func() { h.nothingLeft(g, "net0") }, func() error {
				_, err := h.Attach(h.context(20*time.Second), spec)
				return err
			})
			h.killed(order{Spec: spec, KillAt: "rates", After: true})
			h.nothingLeft(g, "net0")
			if got := h.check(); spec.Rates.Shape && (len(got) != 1 || got[0].What != "rates") {
				t.Errorf("killed: check finds %+v", got)
			}
			h.settled()
			h.noShaper("killed, and reconciled")
			h.attach(spec)
			h.limits("attached", g, rates)
			if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || res.Changed {
				t.Errorf("the same again: %+v, %v", res, err)
			}
			spec.Rates.Up.Bits = 1e9
			_, err := h.Attach(h.context(20*time.Second), spec)
			if !errors.Is(err, nic.ErrExist) ||
				!strings.Contains(err.Error(), "vmnet set --vm "+g.name+" --nic net0 --rate-up 1G,100kpps)") {
				t.Errorf("another rate: %v", err)
			}
			steps := h.stepNamesOf(func() error { _, err := h.set(g, limited); return err })
			h.faultAtEach(steps, func() {
				h.Run = nil
				h.limits("after a fault", g, rates)
			}, func() error { _, err := h.set(g, limited); return err })
			h.killed(order{Spec: h.changed(g, limited), Set: true, KillAt: "rates", After: true})
			if got := h.check(); len(got) == 0 {
				t.Error("check finds no change that was cut short")
			}
			h.settled()
			h.limits("completed", g, changed)
			if _, err := h.set(g, unlimited); err != nil {
				t.Fatal(err)
			}
			h.limits("off", g, portrate.Config{})
			h.noShaper("off")
			if _, err := h.set(g, func(s *nic.Spec) { s.Rates = rates }); err != nil {
				t.Fatal(err)
			}
			h.limits("on again", g, rates)
			if _, err := h.Detach(h.context(20*time.Second), tapmgr.DetachSpec{
				Target: nic.Target{VM: g.name}, NIC: "net0", Force: true,
			}); err != nil {
				t.Fatal(err)
			}
			h.noShaper("detached")
		})
	}
}

// TestLiveRatesAreCompared: check names limits that somebody has removed or changed, and reconcile
// sets them again.
func TestLiveRatesAreCompared(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := h.empty()
	spec := g.spec("net0")
	spec.Rates = someRates
	n := h.attach(spec)
	for _, args := range []string{
		"qdisc del dev DEV root", "qdisc del dev DEV clsact", "filter del dev DEV egress",
		"qdisc replace dev DEV root handle 766d: tbf rate 2gbit burst 64k latency 50ms",
	} {
		h.runIn(h.ns, n, "tc "+args)
		got := h.check()
		if len(got) != 1 || got[0].What != "rates" || got[0].MendedBy != nic.MendReconcile {
			t.Errorf("after %s: %+v", args, got)
		}
		h.settled()
		h.limits("after "+args, g, someRates)
	}
	h.runIn(h.ns, n, "tc qdisc replace dev DEV root pfifo")
	if got := h.check(); len(got) != 1 || got[0].What != "rates" || got[0].MendedBy != nic.MendAdmin ||
		!strings.Contains(got[0].Found, "tc qdisc del dev "+n.Interface+" root") {
		t.Errorf("another program's qdisc: %+v", got)
	}
	if _, err := h.set(g, limited); err == nil || !strings.Contains(err.Error(), "tc qdisc del dev") {
		t.Errorf("set over another program's qdisc: %v", err)
	}
	h.runIn(h.ns, n, "tc qdisc del dev DEV root")
	h.settled()
	h.limits("without it", g, someRates)
	spec = g.spec("net1")
	spec.Rates = portrate.Config{Up: portrate.Limit{Bits: 1e8}, Burst: 16 << 10}
	spec.Bridge = "big"
	h.ip("link", "add", "big", "mtu", "30000", "up", "type", "bridge")
	if _, err := h.Attach(h.context(20*time.Second), spec); !errors.Is(err, nic.ErrInvalid) ||
		!strings.Contains(err.Error(), "--burst 30k") {
		t.Errorf("a burst below the MTU: %v", err)
	}
}

// TestLiveRatesOnASwitch: the switch has a guest's rates, and set changes them.
func TestLiveRatesOnASwitch(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.runSwitch()
	for _, by := range []nic.By{nic.BySocket, nic.ByTap} {
		g := h.empty()
		spec := g.spec("net0")
		spec.Bridge, spec.Switch, spec.Rates = "", &nic.Switch{Name: s.path, By: by}, someRates
		h.attach(spec)
		for _, want := range []portrate.Config{someRates, otherRates, {}} {
			_, err := h.set(g, func(s *nic.Spec) { s.Rates = want })
			if err != nil || h.listedOne(g).Rates != want {
				t.Errorf("%s: %v, %v; want %v", by, h.listedOne(g).Rates, err, want)
			}
			if got := h.check(); len(got) != 0 {
				t.Errorf("%s: check finds %+v", by, got)
			}
		}
	}
}

// TestLiveRateOfAGuest: not more than the rate comes out of the tap that QEMU holds.
func TestLiveRateOfAGuest(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := h.empty()
	spec := g.spec("net0")
	spec.Rates = portrate.Config{Up: portrate.Limit{Bits: 8e6}, Burst: 64 << 10}
	h.attach(spec)
	far, s := h.hearBridge(), h.senderOf(g.name)
	const size, frames = 1000, (64<<10 + 500_000) / 1000 // the burst, and half a second
	frame := make([]byte, size)
	copy(frame, "\xff\xff\xff\xff\xff\xff")
	copy(frame[6:], nic.DefaultMAC(g.name, "net0"))
	frame[12], frame[13] = 0x88, 0xb5
	start := time.Now()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				s.send(frame)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	if err := far.SetReadDeadline(start.Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for arrived := 0; arrived < frames; {
		n, err := far.Read(buf)
		if err != nil {
			t.Fatalf("%d frames: %v", arrived, err)
		}
		if n == size {
			arrived++
		}
	}
	if took := time.Since(start); took < 490*time.Millisecond {
		t.Errorf("%d frames in %v", frames, took)
	}
}
