package vswitch

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// A lan is a switch whose ports are socketpairs. The test has their other ends, the stations.
type lan struct {
	tb       testing.TB
	sw       *Switch
	stations map[string]*station
}

type station struct {
	far  *os.File
	fd   int
	sent uint64
}

func newLAN(tb testing.TB, ports map[string]vport.Config) *lan {
	tb.Helper()
	l := &lan{tb, New(Config{}), map[string]*station{}}
	tb.Cleanup(func() {
		if err := l.sw.Close(); err != nil {
			tb.Error(err)
		}
		for _, s := range l.stations {
			_ = s.far.Close()
		}
	})
	for name, cfg := range ports {
		l.add(name, cfg)
	}
	return l
}

func (l *lan) add(name string, cfg vport.Config) *Port {
	l.tb.Helper()
	w, far, err := SocketPair(max(cfg.MTU, 1500))
	if err != nil {
		l.tb.Fatal(err)
	}
	s := &station{far: far, fd: int(far.Fd())}
	if err := unix.SetNonblock(s.fd, true); err != nil {
		l.tb.Fatal(err)
	}
	p, err := l.sw.AddPort(name, w, cfg)
	if err != nil {
		l.tb.Fatal(err)
	}
	l.stations[name] = s
	return p
}

func (l *lan) port(name string) *Port {
	l.tb.Helper()
	p := l.sw.table.Load().find(name)
	if p == nil {
		l.tb.Fatalf("no port %s", name)
	}
	return p
}

// send sends frames from a station. When the switch has handled them, it returns what each station
// has received.
func (l *lan) send(from string, frames ...[]byte) map[string][][]byte {
	l.tb.Helper()
	s := l.stations[from]
	for _, f := range frames {
		if _, err := unix.Write(s.fd, f); err != nil {
			l.tb.Fatal(err)
		}
		s.sent++
	}
	l.settle(from)
	got := map[string][][]byte{}
	for name, s := range l.stations {
		for f := s.read(); f != nil; f = s.read() {
			got[name] = append(got[name], f)
		}
	}
	return got
}

// settle waits until all frames that a station has sent were counted, which happens after their
// delivery.
func (l *lan) settle(from string) {
	l.tb.Helper()
	s, p := l.stations[from], l.port(from)
	nstest.Eventually(l.tb, 20*time.Second, "all frames of "+from+" are counted", func() bool {
		st := p.Stats()
		return st.Total().RxFrames+st.Drops[Giant.String()] == s.sent
	})
}

func (s *station) read() []byte {
	b := make([]byte, maxFrame)
	n, err := unix.Read(s.fd, b)
	if err != nil {
		return nil
	}
	return b[:n]
}

// names returns the stations that received frames, sorted.
func names(got map[string][][]byte) []string {
	var all []string
	for name := range got {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// Addresses of stations: mac(1) is 02:00:00:00:00:01.
func mac(n byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, n} }

var all = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

const testType = 0x88b5 // for experiments (IEEE 802)

// etherFrame returns a frame with those tags, written as "8100:10": type, and VLAN id with
// priority.
func etherFrame(dst, src net.HardwareAddr, tags []string, payload int) []byte {
	b := append(append([]byte{}, dst...), src...)
	for _, tag := range tags {
		var kind, tci uint16
		if _, err := fmt.Sscanf(tag, "%x:%d", &kind, &tci); err != nil {
			panic(err)
		}
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, kind), tci)
	}
	b = binary.BigEndian.AppendUint16(b, testType)
	for i := range payload {
		b = append(b, byte(i*7))
	}
	return b
}

func tagged(tags ...string) []string { return tags }

func access(vlan int) vport.Config {
	return vport.Config{Settings: brport.Settings{VLAN: vlan}}
}

// trunkAll is a trunk of all VLANs.
func trunkAll(native int) vport.Config {
	return vport.Config{Settings: brport.Settings{Native: native, Trunk: []brport.VLANRange{{First: 1, Last: 4094}}}}
}

func trunk(native int, vlans ...int) vport.Config {
	cfg := vport.Config{Settings: brport.Settings{Native: native}}
	for _, id := range vlans {
		cfg.Trunk = append(cfg.Trunk, brport.VLANRange{First: id, Last: id})
	}
	return cfg
}
