package vhostuser

import (
	"bytes"
	"errors"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
	"vmnet/internal/vhostuser/guestmem"
)

// TestResults has what becomes of frames that the guest cannot take.
func TestResults(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	var s Sender
	plain, partial := []byte{0}, []byte{offload.NeedsCsum}
	if r := b.send(&s, 0, plain, ether(60, 0)); r != Down {
		t.Errorf("without a frontend: %d", r)
	}
	f := b.guest(frontend.Config{Without: frontend.Mergeable | frontend.GuestTSO4, Ring: 4})
	for _, tt := range []struct {
		name string
		head []byte
		size int
		want Result
	}{
		{"longer than a buffer", plain, 2037, TooLong},
		{"as long as a buffer", plain, 2036, Sent},
		{"TCP super-frame", []byte{offload.NeedsCsum, offload.GSOTCPv4}, 2000, Rejected},
		{"partial checksum", partial, 60, Sent},
		{"third", partial, 60, Sent},
		{"fourth", partial, 60, Sent},
	} {
		if r := b.send(&s, 0, tt.head, ether(tt.size, 0)); r != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, r, tt.want)
		}
	}
	results := []Result{Sent}
	b.dev.Pair(0).Send(&s, []offload.Frame{{Head: make([]byte, offload.HeaderLen), Payload: ether(60, 0)}}, results)
	if results[0] != Full {
		t.Errorf("a fifth frame: %d", results[0])
	}
	if err := b.hangup(f); err != nil {
		t.Error(err)
	}
	b.ready(false)
}

// TestFlagsWithoutGuestChecksum: a driver that has not negotiated it gets no flags.
func TestFlagsWithoutGuestChecksum(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{Without: frontend.GuestCSum})
	var s Sender
	if r := b.send(&s, 0, []byte{offload.NeedsCsum}, ether(60, 0)); r != Rejected {
		t.Errorf("a partial checksum: %d", r)
	}
	if r := b.send(&s, 0, []byte{offload.DataValid}, ether(60, 0)); r != Sent {
		t.Errorf("a verified checksum: %d", r)
	}
	if got, ok := f.Pair[0].Await(within); !ok || got[0] != 0 {
		t.Errorf("the guest got %v", got)
	}
	_ = b.hangup(f)
}

// TestLimits compares what the device says that a guest takes with what was negotiated.
func TestLimits(t *testing.T) {
	t.Parallel()
	all := offload.Limits{
		CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: offload.HeaderLen, MTU: 9000,
	}
	b := newBench(t, 1)
	f := b.guest(frontend.Config{MTU: 9000})
	if got := b.dev.State().Limits; got != all {
		t.Errorf("%+v", got)
	}
	_ = b.hangup(f)
	f = b.guest(frontend.Config{Without: frontend.GuestCSum})
	if got := b.dev.State().Limits; got != (offload.Limits{VnetHdr: offload.HeaderLen}) {
		t.Errorf("without checksums: %+v", got)
	}
	_ = b.hangup(f)
}

// TestFrontendReturns keeps the frames in the guest's ring while no backend serves it, also if the
// frontend does not say where the ring is.
func TestFrontendReturns(t *testing.T) {
	t.Parallel()
	for _, forgets := range []bool{false, true} {
		frontendReturns(t, forgets)
	}
}

func frontendReturns(t *testing.T, forgets bool) {
	t.Helper()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{Forget: forgets})
	for round := range 5 {
		first, second := ether(60, 3*round), ether(61, 3*round+1)
		f.Pair[0].Send(append(make([]byte, frontend.Header), first...))
		if got := b.receive(); !bytes.Equal(got[offload.HeaderLen:], first) {
			t.Fatalf("round %d: another frame", round)
		}
		_ = f.Hangup()
		if err := b.end(); err != nil {
			t.Fatal(err)
		}
		f.Pair[0].Send(append(make([]byte, frontend.Header), second...))
		if err := f.Reconnect(b.serve()); err != nil {
			t.Fatal(err)
		}
		if got := b.receive(); !bytes.Equal(got[offload.HeaderLen:], second) {
			t.Fatalf("round %d: the frame that waited is lost", round)
		}
	}
	if err := b.hangup(f); err != nil {
		t.Fatal(err)
	}
}

// TestRingStops: GET_VRING_BASE says where the device has stopped, and no frame passes afterwards.
func TestRingStops(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{})
	frame := append(make([]byte, frontend.Header), ether(60, 1)...)
	for range 3 {
		f.Pair[0].Send(frame)
		b.receive()
	}
	if base, err := f.Pair[0].Base(true); base != 3 || err != nil {
		t.Errorf("the ring from the guest stops at %d: %v", base, err)
	}
	if base, err := f.Pair[0].Base(false); base != 0 || err != nil {
		t.Errorf("the ring to the guest stops at %d: %v", base, err)
	}
	b.ready(false)
	if r := b.send(new(Sender), 0, []byte{0}, ether(60, 0)); r != Down {
		t.Errorf("a frame to a stopped ring: %d", r)
	}
	_ = b.hangup(f)
}

// TestKickReplaced: a ring goes on where it is when its kick file is replaced.
func TestKickReplaced(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{})
	p := f.Pair[0]
	send := func(seed int) {
		t.Helper()
		frame := ether(60, seed)
		p.Send(append(make([]byte, frontend.Header), frame...))
		if got := b.receive(); !bytes.Equal(got[offload.HeaderLen:], frame) {
			t.Fatal("a frame came again")
		}
	}
	for seed := range 3 {
		send(seed)
	}
	if err := p.Rekick(); err != nil {
		t.Fatal(err)
	}
	send(3)
	if base, err := p.Base(true); base != 4 || err != nil {
		t.Errorf("the ring from the guest stops at %d: %v", base, err)
	}
	if err := b.hangup(f); err != nil {
		t.Error(err)
	}
}

// TestDisabledRing drops the guest's frames, and uses them up.
func TestDisabledRing(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{})
	if err := f.Tell(frontend.SetVringEnable, frontend.Halves(1, 0)); err != nil {
		t.Fatal(err)
	}
	f.Pair[0].Send(append(make([]byte, frontend.Header), ether(60, 1)...))
	nstest.Eventually(t, within, "the frame is dropped", func() bool { return f.Pair[0].InFlight() == 0 })
	if err := f.Tell(frontend.SetVringEnable, frontend.Halves(1, 1)); err != nil {
		t.Fatal(err)
	}
	want := ether(60, 2)
	f.Pair[0].Send(append(make([]byte, frontend.Header), want...))
	if got := b.receive(); !bytes.Equal(got[offload.HeaderLen:], want) {
		t.Error("the dropped frame arrived")
	}
	_ = b.hangup(f)
}

// TestMemorySlots moves the guest's memory to a slot of its own, beside others that come and go.
func TestMemorySlots(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{})
	if n, err := f.Ask(frontend.GetMaxMemSlots, nil); n != guestmem.MaxAreas || err != nil {
		t.Fatalf("%d slots: %v", n, err)
	}
	_, fd := f.Memory()
	slot := func(n uint64) []byte {
		return append(frontend.Words(0), frontend.Region(1<<40+n<<20, 4096, 1<<40+n<<20, 0)...)
	}
	for n := range uint64(guestmem.MaxAreas) {
		err := f.Tell(frontend.AddMemReg, slot(n), fd)
		if (n < guestmem.MaxAreas-1) != (err == nil) {
			t.Fatalf("slot %d: %v", n, err)
		}
	}
	if err := b.end(); err == nil || !strings.Contains(err.Error(), "more than 32 regions") {
		t.Error(err)
	}
	_ = f.Close()
	f = b.guest(frontend.Config{})
	_, fd = f.Memory()
	for n := range uint64(70) {
		if err := f.Tell(frontend.AddMemReg, slot(n), fd); err != nil {
			t.Fatal(err)
		}
		if err := f.Tell(frontend.RemMemReg, slot(n)); err != nil {
			t.Fatal(err)
		}
	}
	frame := ether(60, 9)
	f.Pair[0].Send(append(make([]byte, frontend.Header), frame...))
	if got := b.receive(); !bytes.Equal(got[offload.HeaderLen:], frame) {
		t.Error("another frame")
	}
	_ = b.hangup(f)
}

// TestMemoryGoes ends the session of a frontend that shrinks its memory, in either direction.
func TestMemoryGoes(t *testing.T) {
	t.Parallel()
	for _, from := range []bool{true, false} {
		b := newBench(t, 1)
		f := b.guest(frontend.Config{})
		if err := f.Shrink(); err != nil {
			t.Fatal(err)
		}
		if from {
			f.Pair[0].Kick(true)
		} else if r := b.send(new(Sender), 0, []byte{0}, ether(60, 0)); r != Down {
			t.Errorf("a frame to memory that is gone: %d", r)
		}
		if err := b.end(); err == nil || !strings.Contains(err.Error(), "its memory at 0x10000 is gone") {
			t.Errorf("from the guest %v: %v", from, err)
		}
		_ = f.Close()
		f = b.guest(frontend.Config{})
		if err := b.hangup(f); err != nil {
			t.Error(err)
		}
	}
}

// TestFrontendThatBlocks makes the eventfd that wakes the guest block. Tick ends the session.
func TestFrontendThatBlocks(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{Without: frontend.EventIndex})
	_, call := f.Pair[0].Events()
	if err := unix.SetNonblock(call, false); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(call, frontend.Words(1<<64-2)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan Result, 1)
	go func() { sent <- b.send(new(Sender), 0, []byte{0}, ether(60, 0)) }()
	nstest.Eventually(t, within, "the session ends", func() bool {
		b.dev.Tick()
		return len(b.ended) == 1
	})
	if err := b.end(); !errors.Is(err, errHeld) {
		t.Error(err)
	}
	if r := <-sent; r != Sent {
		t.Errorf("the frame that could not wake the guest: %d", r)
	}
	_ = f.Close()
}

func TestClose(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{})
	_ = b.dev.Close()
	if err := b.end(); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if err := f.WaitClosed(); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	near, far := connected(t)
	if err := b.dev.Serve(near); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	_ = far.Close()
	for _, pairs := range []int{0, MaxPairs + 1} {
		if _, err := New(pairs, nil); err == nil {
			t.Errorf("%d pairs are accepted", pairs)
		}
	}
}

// TestNoAllocation measures the way of a frame in both directions.
// A ring stops while its kicks arrive: neither waits for the other.
func TestStopsWhileKicked(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{})
	done := make(chan struct{})
	var kicking sync.WaitGroup
	kicking.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				f.Pair[0].Kick(true)
			}
		}
	})
	stop := sync.OnceFunc(func() { close(done); kicking.Wait() })
	defer stop()
	for range 300 {
		if err := f.Hangup(); err != nil {
			t.Fatal(err)
		}
		if err := b.end(); err != nil {
			t.Fatal(err)
		}
		if err := f.Reconnect(b.serve()); err != nil {
			t.Fatal(err)
		}
		b.ready(true)
	}
	stop()
	f.Pair[0].Send(append(make([]byte, frontend.Header), ether(60, 1)...))
	b.receive()
	if err := b.hangup(f); err != nil {
		t.Error(err)
	}
}

func TestNoAllocation(t *testing.T) {
	near, far := connected(t)
	dev, err := New(1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- dev.Serve(near) }()
	f, err := frontend.New(far, frontend.Config{})
	if err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, within, "the device is ready", func() bool { return dev.State().Ready })
	p, frames := dev.Pair(0), make([]Received, 64)
	list := []offload.Frame{{Head: make([]byte, offload.HeaderLen), Payload: ether(60, 0)}}
	var s Sender
	results := make([]Result, 1)
	frame := append(make([]byte, frontend.Header), ether(60, 0)...)
	var before, after runtime.MemStats
	var count uint64
	for range 100 {
		f.Pair[0].Send(frame)
		runtime.ReadMemStats(&before)
		n, err := p.Receive(frames)
		p.Send(&s, list, results)
		p.Done(&s)
		runtime.ReadMemStats(&after)
		if n == 0 || err != nil || results[0] != Sent {
			t.Fatal(n, err, results)
		}
		count += after.Mallocs - before.Mallocs
		f.Pair[0].Receive()
	}
	if count > 50 { // the first ones, and those of other goroutines
		t.Errorf("%d allocations in 100 rounds", count)
	}
	_ = f.Close()
	<-ended
	_ = dev.Close()
}
