package vhostuser

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// A held is a device from which the test itself receives, with the frontend.
type held struct {
	t testing.TB
	*Pair
	*frontend.Frontend
	ended  chan error
	frames [64]Received
	s      Sender
}

func newHeld(t testing.TB, cfg frontend.Config) *held {
	t.Helper()
	near, far := connected(t)
	dev, err := New(1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	h := &held{t: t, Pair: dev.Pair(0), ended: make(chan error, 1)}
	go func() { h.ended <- dev.Serve(near) }()
	if h.Frontend, err = frontend.New(far, cfg); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, within, "the device is ready", func() bool { return dev.State().Ready })
	h.s.From = h.Pair
	t.Cleanup(func() {
		h.Done(&h.s)
		_ = h.Frontend.Close()
		<-h.ended
		_ = dev.Close()
	})
	return h
}

// receive returns the next batch.
func (h *held) receive() []Received {
	h.t.Helper()
	n, err := h.Receive(h.frames[:])
	if err != nil {
		h.t.Fatal(err)
	}
	return h.frames[:n]
}

func whole(f Received) []byte { return slices.Concat(f.Head, slices.Concat(f.Rest...)) }

// TestInPlace: a frame is its head and the rest in the guest's memory, whatever its length and its
// descriptors are, and the guest gets its buffers back when the batch is done.
func TestInPlace(t *testing.T) {
	t.Parallel()
	for _, cfg := range []frontend.Config{
		{},
		{Pieces: 3, Ring: 1024},
		{Pieces: 19, Ring: 1024},
		{Pieces: 21, Indirect: true},
		{Pieces: 60, Indirect: true},
		{Without: frontend.Mergeable | frontend.Version1, Buffer: 66 << 10, Pieces: 2},
	} {
		h := newHeld(t, cfg)
		header := frontend.Header
		if cfg.Without&frontend.Version1 != 0 {
			header = offload.HeaderLen
		}
		for _, n := range []int{60, HeadLen, copied - offload.HeaderLen, copied - offload.HeaderLen + 1, 1514, 65550} {
			frame := ether(n, n)
			h.Frontend.Pair[0].Send(append(make([]byte, header), frame...))
			got := h.receive()
			if len(got) != 1 {
				t.Fatalf("%+v: %d frames", cfg, len(got))
			}
			f := got[0]
			if !bytes.Equal(whole(f)[offload.HeaderLen:], frame) || f.More != len(slices.Concat(f.Rest...)) {
				t.Errorf("%+v: another frame of %d bytes: %d and %d", cfg, n, len(f.Head), f.More)
			}
			size := (n + header + max(1, cfg.Pieces) - 1) / max(1, cfg.Pieces) // of a descriptor
			pieces := (max(0, n+offload.HeaderLen-HeadLen) + size - 1) / size
			inPlace := n+offload.HeaderLen > copied && pieces <= maxRest
			if (f.More > 0) != inPlace || inPlace && len(f.Head) != HeadLen || len(f.Rest) > maxRest {
				t.Errorf("%+v: of %d bytes, %d are in the head and %d in %d pieces", cfg, n, len(f.Head), f.More,
					len(f.Rest))
			}
			if h.Frontend.Pair[0].InFlight() == 0 {
				t.Errorf("%+v: the guest has its buffers before the batch is done", cfg)
			}
			if !h.Whole(&f) || !bytes.Equal(f.Head[offload.HeaderLen:], frame) || f.More != 0 || f.Rest != nil {
				t.Errorf("%+v: a copy of %d bytes differs", cfg, n)
			}
			h.Done(&h.s)
			if n := h.Frontend.Pair[0].InFlight(); n != 0 {
				t.Errorf("%+v: the guest waits for %d buffers", cfg, n)
			}
		}
	}
}

// TestBatchIsBounded: however many frames and pieces wait, each comes once.
func TestBatchIsBounded(t *testing.T) {
	t.Parallel()
	for size, pieces := range map[int]int{60: 1, 1514: 9, 40000: 1, 65550: 19} {
		h := newHeld(t, frontend.Config{Ring: 256, Pieces: pieces, Indirect: true})
		const frames = 200
		for i := range frames {
			if h.Frontend.Pair[0].Send(append(make([]byte, frontend.Header), ether(size, i)...)) != 1 {
				t.Fatal("the ring is full")
			}
		}
		for seen := 0; seen < frames; h.Done(&h.s) {
			bytesOf, piecesOf := 0, 0
			for _, f := range h.receive() {
				if !bytes.Equal(whole(f)[offload.HeaderLen:], ether(size, seen)) {
					t.Fatalf("frame %d of %d bytes differs", seen, size)
				}
				seen++
				bytesOf, piecesOf = bytesOf+len(f.Head)+f.More, piecesOf+len(f.Rest)
			}
			if bytesOf > MaxBatch || piecesOf > MaxPieces {
				t.Errorf("a batch of %d bytes in %d pieces", bytesOf, piecesOf)
			}
		}
	}
}

// TestStopWaitsForBatch: the guest's memory is its own again when GET_VRING_BASE is answered.
func TestStopWaitsForBatch(t *testing.T) {
	t.Parallel()
	h := newHeld(t, frontend.Config{})
	h.Frontend.Pair[0].Send(append(make([]byte, frontend.Header), ether(1514, 1)...))
	f := h.receive()[0]
	answered := make(chan error, 1)
	go func() {
		base, err := h.Frontend.Pair[0].Base(true)
		if err == nil && base != 1 {
			err = errors.New("the ring stops elsewhere")
		}
		answered <- err
	}()
	nstest.Eventually(t, within, "the message waits for the lock", func() bool {
		if h.dev.mu.TryRLock() {
			h.dev.mu.RUnlock()
			return false
		}
		return true
	})
	if len(answered) > 0 || !bytes.Equal(whole(f)[offload.HeaderLen:], ether(1514, 1)) {
		t.Error("the ring was stopped while a batch uses it")
	}
	h.Done(&h.s)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// TestLostFrame: a frame that is gone from its guest's memory ends the session of that guest. The
// guest to which it was sent gets the frames around it.
func TestLostFrame(t *testing.T) {
	t.Parallel()
	to := newBench(t, 1)
	other := to.guest(frontend.Config{})
	h := newHeld(t, frontend.Config{})
	if err := h.Frontend.Pair[0].SendLost(append(make([]byte, frontend.Header), ether(9014, 1)...)); err != nil {
		t.Fatal(err)
	}
	f := h.receive()[0]
	if len(f.Head) != HeadLen || f.More == 0 {
		t.Fatalf("%d bytes and %d more", len(f.Head), f.More)
	}
	head := func() []byte { return make([]byte, offload.HeaderLen) }
	results := make([]Result, 3)
	to.dev.Pair(0).Send(&h.s, []offload.Frame{
		{Head: head(), Payload: ether(60, 1)},
		{Head: head(), Payload: f.Head[offload.HeaderLen:], Rest: f.Rest},
		{Head: head(), Payload: ether(60, 2)},
	}, results)
	if want := []Result{Sent, Lost, Sent}; !slices.Equal(results, want) {
		t.Errorf("results %d: want %d", results, want)
	}
	if h.Whole(&f) || h.Copy(make([]byte, 9014), f.Rest...) {
		t.Error("what is gone was read")
	}
	h.Done(&h.s)
	err := <-h.ended
	h.ended <- err
	if err == nil || !strings.Contains(err.Error(), "its memory at 0x10000 is gone") {
		t.Error(err)
	}
	for _, seed := range []int{1, 2} {
		if got, ok := other.Pair[0].Await(within); !ok || !bytes.Equal(got[frontend.Header:], ether(60, seed)) {
			t.Errorf("the other guest got %x: want frame %d", got, seed)
		}
	}
	if err := to.hangup(other); err != nil {
		t.Errorf("the other session: %v", err)
	}
}
