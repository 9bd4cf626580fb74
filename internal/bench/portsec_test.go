package bench

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/clsact"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

const (
	securityTurns   = 300
	securityBatch   = 32 // of a switch, which reads as many at once
	securityBatches = 20 // in a turn, which is short enough for some turns to be undisturbed
	securityFrames  = securityBatch * securityBatches
)

// BenchmarkPortSecurity sends frames of TCP by IPv4 with and without port security: from a tap of a
// bridge to another tap, and from port to port of a userspace switch. The shortest turns are those
// in which least else ran on the processors.
func BenchmarkPortSecurity(b *testing.B) {
	for name, make := range map[string]func(*testing.B) []*Way{"bridge": bridgeWays, "switch": switchWays} {
		b.Run(name, func(b *testing.B) {
			ways := make(b)
			WarmUp(b, 0, ways...)
			Turns(b, securityTurns, ways...)
			Report(b, ways...)
			without := ways[0].Shortest()
			b.ReportMetric(float64(without)/securityFrames, "ns/frame")
			for _, w := range ways[1:] {
				name := strings.ReplaceAll(w.Name, " ", "-")
				b.ReportMetric(float64(w.Shortest()-without)/securityFrames, "added-ns/frame-"+name)
				b.ReportMetric(float64(w.Shortest())/float64(without), "x-"+name)
			}
		})
	}
}

// securityWay sends batches of frames, and does what is needed before a turn.
func securityWay(name string, before, send func() error) *Way {
	return &Way{Name: name, Do: func(int) (time.Duration, error) {
		if err := before(); err != nil {
			return 0, err
		}
		begin := time.Now()
		for range securityBatches {
			if err := send(); err != nil {
				return 0, err
			}
		}
		return time.Since(begin), nil
	}}
}

// securityFrame is a frame that passes all checks.
func securityFrame(b *testing.B) []byte {
	b.Helper()
	for _, c := range portsectest.Table() {
		if c.Name == "tcp4" && c.Want == portsec.Pass {
			return append(c.Frame, make([]byte, max(0, 60-len(c.Frame)))...)
		}
	}
	b.Fatal("portsectest has no frame tcp4")
	return nil
}

// bridgeWays write to taps of a bridge: to one without a filter, one with a filter that does
// nothing, and one with port security. Nobody reads the tap to which the frames go, whose queue is
// soon full.
func bridgeWays(b *testing.B) (ways []*Way) {
	b.Helper()
	ns := nstest.New(b)
	h, err := bridge.Open(ns.Path())
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	if err := h.Create(bridge.Config{Name: "br0"}); err != nil {
		b.Fatal(err)
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		b.Fatal(err)
	}
	defer nl.Close()
	frame := append(make([]byte, 10), securityFrame(b)...) // behind a vnet header
	add := func(name string, filter func(*rtnl.Link) error) *os.File {
		tap, err := tun.Create(ns, name, false)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = tap.Close() })
		l, err := nl.Link(name)
		if err == nil {
			err = filter(l)
		}
		if err == nil {
			err = h.AddPort("br0", name, brport.Settings{})
		}
		if err != nil {
			b.Fatal(err)
		}
		return tap.Queues()[0]
	}
	none := func(*rtnl.Link) error { return nil }
	back := slices.Concat(frame[:10], frame[16:22], frame[10:16], frame[22:])
	if _, err := add("far", none).Write(back); err != nil { // the bridge learns where it is
		b.Fatal(err)
	}
	for _, w := range []struct {
		name   string
		filter func(*rtnl.Link) error
	}{
		{"without", none},
		{"an empty filter", func(l *rtnl.Link) error { return emptyFilter(nl, l) }},
		{"port security", func(l *rtnl.Link) error { return bpfguard.Attach(nl, l, portsectest.Config()) }},
	} {
		guest := add(fmt.Sprintf("guest%d", len(ways)), w.filter)
		ways = append(ways, securityWay(w.name, func() error { return nil }, func() error {
			for range securityBatch {
				if _, err := guest.Write(frame); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return ways
}

// emptyFilter puts a program that does nothing where port security has its own.
func emptyFilter(nl *rtnl.Conn, l *rtnl.Link) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm32(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer p.Close()
	f := rtnl.Filter{Priority: 1, Handle: 1, Kind: "bpf", Name: "empty"}
	return clsact.Set(nl, l, rtnl.Ingress, f, p.FD(), func(err error) error { return err })
}

// switchWays send to a port of a switch, and receive from another one. The port has port security
// in turns.
func switchWays(b *testing.B) []*Way {
	b.Helper()
	sw := vswitch.New(vswitch.Config{})
	b.Cleanup(func() { _ = sw.Close() })
	add := func(name string) *os.File {
		w, far, err := vswitch.SocketPair(1500)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = far.Close() })
		if _, err := sw.AddPort(name, w, vport.Config{}); err != nil {
			b.Fatal(err)
		}
		return far
	}
	guest, peer := add("guest"), add("peer")
	frame, buf := securityFrame(b), make([]byte, 2048)
	back := slices.Concat(frame[6:12], frame[:6], frame[12:])
	if _, err := peer.Write(back); err != nil { // the switch learns where the peer is
		b.Fatal(err)
	}
	if _, err := guest.Read(buf); err != nil {
		b.Fatal(err)
	}
	send := func() error {
		for range securityBatch {
			if _, err := guest.Write(frame); err != nil {
				return err
			}
		}
		for range securityBatch {
			if n, err := peer.Read(buf); err != nil || !bytes.Equal(buf[:n], frame) {
				return fmt.Errorf("received %x, %w", buf[:n], err)
			}
		}
		return nil
	}
	set := func(cfg portsec.Config) func() error {
		return func() error { return sw.SetPort("guest", vport.Config{Security: cfg}) }
	}
	return []*Way{
		securityWay("without", set(portsec.Config{}), send),
		securityWay("port security", set(portsectest.Config()), send),
	}
}
