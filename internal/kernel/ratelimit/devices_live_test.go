package ratelimit

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

var guestIP, farIP = netip.MustParseAddr("10.8.0.4"), netip.MustParseAddr("10.8.0.1")

// ipFrame is an empty datagram of UDP, from that port.
func ipFrame(from, to net.HardwareAddr, src, dst netip.Addr, port uint16) []byte {
	f := make([]byte, frameSize)
	copy(f, to)
	copy(f[6:], from)
	copy(f[12:], []byte{8, 0, 0x45, 0})
	binary.BigEndian.PutUint16(f[16:], frameSize-14)
	f[22], f[23] = 64, unix.IPPROTO_UDP
	copy(f[26:], src.AsSlice())
	copy(f[30:], dst.AsSlice())
	sum := uint32(0) // which br_netfilter looks at, if it is loaded
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	binary.BigEndian.PutUint16(f[24:], ^uint16(sum>>16+sum))
	binary.BigEndian.PutUint16(f[34:], port)
	binary.BigEndian.PutUint16(f[38:], frameSize-34)
	return f
}

// floods numbers the floods: what one has left in queues does not count for the next.
var floods atomic.Uint32

// flood has each end send its frames as fast as it can, until that many have come out of the
// others, and returns how long that took.
func flood(t *testing.T, from []end, frames [][]byte, to []end, wanted int64) time.Duration {
	t.Helper()
	var senders, receivers sync.WaitGroup
	var arrived atomic.Int64
	var enough sync.Once
	done := make(chan struct{})
	start, mark := time.Now(), byte(floods.Add(1))
	for i, e := range from {
		senders.Go(func() {
			for n := i; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				text := append(make([]byte, e.vnet), frames[n%len(frames)]...)
				text[len(text)-1] = mark
				if err := e.send(text); err != nil && !errors.Is(err, unix.EINTR) {
					t.Errorf("send: %v", err)
					return
				}
			}
		})
	}
	for _, e := range to {
		receivers.Go(func() {
			_ = e.SetReadDeadline(start.Add(2 * time.Minute)) // of a loaded machine
			buf := make([]byte, 1<<16)
			for {
				n, err := e.Read(buf)
				if err != nil {
					return
				}
				if n == e.vnet+frameSize && buf[n-1] == mark && arrived.Add(1) == wanted {
					enough.Do(func() { close(done) })
				}
			}
		})
	}
	var took time.Duration
	select {
	case <-done:
		took = time.Since(start)
	case <-time.After(2 * time.Minute):
		t.Errorf("%d frames of %d have come", arrived.Load(), wanted)
		enough.Do(func() { close(done) })
	}
	senders.Wait()
	for _, e := range to {
		_ = e.SetReadDeadline(time.Now())
	}
	receivers.Wait()
	return took
}

// limited demands that frames pass in both directions, and not faster than the rate, at which they
// take half a second beyond the burst.
func limited(t *testing.T, p *port, guests []end, up, down [][]byte) {
	t.Helper()
	const bits = 8_000_000
	cfg := portrate.Config{Up: portrate.Limit{Bits: bits}, Down: portrate.Limit{Bits: bits}, Burst: 64 << 10}
	const frames = (64<<10 + bits/8/2) / frameSize
	for _, shape := range []bool{false, true} {
		cfg.Shape = shape
		if err := Set(p.c, p.link, cfg); err != nil {
			t.Fatal(err)
		}
		if s, err := Read(p.c, p.link); err != nil || !s.Is(cfg) {
			t.Errorf("read back %v, %v", s, err)
		}
		if took := flood(t, guests, up, []end{p.far}, frames); took < 490*time.Millisecond {
			t.Errorf("shape %v: from the guest: %d frames in %v", shape, frames, took)
		}
		if took := flood(t, []end{p.far}, down, guests, frames); took < 490*time.Millisecond {
			t.Errorf("shape %v: to the guest: %d frames in %v", shape, frames, took)
		}
	}
}

// flows are frames that the kernel deals out to the queues of a device.
func flows(from, to net.HardwareAddr, src, dst netip.Addr) (list [][]byte) {
	for port := range uint16(64) {
		list = append(list, ipFrame(from, to, src, dst, 5000+port))
	}
	return list
}

// TestLiveRateOfQueues: all queues of a tap together have the rate, whichever of them the guest
// uses.
func TestLiveRateOfQueues(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	p := newTap(t)
	tap, err := tun.Create(p.ns, "many", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.Close() })
	for range 3 {
		if err := tap.AddQueue(); err != nil {
			t.Fatal(err)
		}
	}
	run(t, p.ns, "ip", "link", "set", "guest", "nomaster")
	run(t, p.ns, "ip", "link", "set", "many", "master", "br0", "addrgenmode", "none", "up")
	p.c, p.link = openLink(t, p.ns, "many")
	var queues []end
	for _, f := range tap.Queues() {
		queues = append(queues, newEnd(t, f, vnetHeader, guestMAC))
	}
	limited(t, p, queues, flows(guestMAC, farMAC, guestIP, farIP), flows(farMAC, guestMAC, farIP, guestIP))
}
