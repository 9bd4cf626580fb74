package vswitch_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// TestLiveFramesOfAllLengthsKeepTheirOrder: a packet wire receives short frames by another path
// than long ones, and neither overtakes the other.
func TestLiveFramesOfAllLengthsKeepTheirOrder(t *testing.T) {
	outside, middle := newHost(t, 0, "lan0"), newHost(t, 1, "lan0")
	veth(t, outside, middle, "lan0", 9000)
	w, far, err := vswitch.SocketPair(9000)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	inside := pollable(t, far)
	defer inside.Close()
	sw := newSwitch(t)
	up := addPort(t, sw, "packet", openPacket(t, middle, "lan0"), vport.Config{})
	addPort(t, sw, "socket", w, vport.Config{MTU: 9000})
	p := newProbe(t, outside)

	frame := func(n int) []byte {
		length := []int{60, 1514, 1600, 1950, 1980, 2000, 2040, 2048, 2100, 4000, 9014}[n%11]
		f := slices.Concat([]byte{2, 0, 0, 0, 0, 9}, ours, []byte{0, byte(n >> 8), byte(n), 0x88, 0xb5},
			bytes.Repeat([]byte{byte(n)}, length-14))
		if n%3 == 0 && length < 9000 { // the kernel moves the tag away, and the switch puts it back
			f = slices.Insert(f, 12, 0x81, 0, 0, 5)
		}
		return f
	}
	const burst, bursts = 22, 100 // the socketpair has no room for more
	b := make([]byte, 1<<16)
	for i := range bursts {
		for n := i * burst; n < (i+1)*burst; n++ {
			if _, err := unix.Write(p.fd, append(make([]byte, offload.HeaderLen), frame(n)...)); err != nil {
				t.Fatal(err)
			}
		}
		if err := inside.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for n := i * burst; n < (i+1)*burst; {
			got, err := inside.Read(b)
			if err != nil {
				t.Fatalf("frame %d: %v; drops %v", n, err, up.Stats().Drops)
			}
			if !bytes.Equal(b[6:9], ours) { // of the kernel of the outside host
				continue
			}
			if want := frame(n); !bytes.Equal(b[:got], want) {
				t.Fatalf("frame %d: got %d bytes %x, want %d bytes %x", n, got, b[:min(got, 30)], len(want), want[:30])
			}
			n++
		}
	}
}

// TestLiveOverrun: frames that come faster than the switch takes them are counted as an overrun.
func TestLiveOverrun(t *testing.T) {
	outside, middle := newHost(t, 0, "lan0"), newHost(t, 1, "lan0")
	veth(t, outside, middle, "lan0", 1500)
	sw := newSwitch(t)
	up := addPort(t, sw, "packet", openPacket(t, middle, "lan0"), vport.Config{})
	p := newProbe(t, outside)
	msg := append(make([]byte, offload.HeaderLen), slices.Concat(
		[]byte{2, 0, 0, 0, 0, 9}, ours, []byte{0, 0, 1, 0x88, 0xb5}, make([]byte, 50))...)
	var sent uint64
	nstest.Eventually(t, 20*time.Second, "the kernel drops frames", func() bool {
		for range 20000 {
			if _, err := unix.Write(p.fd, msg); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		return up.Stats().Drops[vswitch.Overrun.String()] > 0
	})
	nstest.Eventually(t, 20*time.Second, "each frame was received or dropped", func() bool {
		s := up.Stats()
		return s.Total().RxFrames+s.Drops[vswitch.Overrun.String()] >= sent
	})
	if n := up.Stats().Drops[vswitch.Indescribable.String()]; n > 0 {
		t.Errorf("%d of them for another reason", n)
	}
}
