package bench

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

const (
	securityTurns  = 40
	securityFrames = 20_000 // in a turn
	securityBatch  = 32     // of a switch, which reads as many at once
)

// BenchmarkPortSecurity sends frames of TCP by IPv4 with and without port security: from a tap of a
// bridge to another tap, and from port to port of a userspace switch.
func BenchmarkPortSecurity(b *testing.B) {
	for name, way := range map[string]func(*testing.B, portsec.Config) func() error{
		"bridge": bridgeSender, "switch": switchSender,
	} {
		b.Run(name, func(b *testing.B) {
			ways := []*Way{securityWay(way(b, portsec.Config{})), securityWay(way(b, portsectest.Config()))}
			ways[0].Name, ways[1].Name = "without", "port security"
			WarmUp(b, 0, ways...)
			Turns(b, securityTurns, ways...)
			Report(b, ways...)
			b.ReportMetric(float64(ways[0].Median())/securityFrames, "ns/frame")
			b.ReportMetric(float64(ways[1].Median()-ways[0].Median())/securityFrames, "added-ns/frame")
			b.ReportMetric(Ratio(ways[1], ways[0]), "x")
		})
	}
}

// securityWay sends batches of frames.
func securityWay(send func() error) *Way {
	return &Way{Do: func(int) (time.Duration, error) {
		begin := time.Now()
		for range securityFrames / securityBatch {
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

// bridgeSender returns a function that writes a batch to a tap of a bridge. Nobody reads the other
// tap, whose queue is soon full.
func bridgeSender(b *testing.B, cfg portsec.Config) func() error {
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
	var guest *os.File
	for _, name := range []string{"far", "guest"} {
		tap, err := tun.Create(ns, name, false)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = tap.Close() })
		guest = tap.Queues()[0]
		l, err := nl.Link(name)
		if err != nil {
			b.Fatal(err)
		}
		if name == "guest" {
			if err := bpfguard.Attach(nl, l, cfg); err != nil {
				b.Fatal(err)
			}
		}
		if err := h.AddPort("br0", name, brport.Settings{}); err != nil {
			b.Fatal(err)
		}
	}
	frame := append(make([]byte, 10), securityFrame(b)...) // behind a vnet header
	return func() error {
		for range securityBatch {
			if _, err := guest.Write(frame); err != nil {
				return err
			}
		}
		return nil
	}
}

// switchSender returns a function that sends a batch to a port of a switch, and receives it from
// another one.
func switchSender(b *testing.B, cfg portsec.Config) func() error {
	b.Helper()
	sw := vswitch.New(vswitch.Config{})
	b.Cleanup(func() { _ = sw.Close() })
	add := func(name string, cfg vport.Config) *os.File {
		w, far, err := vswitch.SocketPair(1500)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = far.Close() })
		if _, err := sw.AddPort(name, w, cfg); err != nil {
			b.Fatal(err)
		}
		return far
	}
	guest, peer := add("guest", vport.Config{Security: cfg}), add("peer", vport.Config{})
	frame, buf := securityFrame(b), make([]byte, 2048)
	back := bytes.Clone(frame)
	copy(back, frame[6:12]) // the switch learns where the peer is
	copy(back[6:], frame[:6])
	if _, err := peer.Write(back); err != nil {
		b.Fatal(err)
	}
	if _, err := guest.Read(buf); err != nil {
		b.Fatal(err)
	}
	return func() error {
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
}
