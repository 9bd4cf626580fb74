package vhostuser

import (
	"testing"

	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// BenchmarkLook is what it costs to find no frames.
func BenchmarkLook(b *testing.B) {
	near, far := connected(b)
	dev, err := New(1, func() {})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- dev.Serve(near) }()
	f, err := frontend.New(far, frontend.Config{})
	if err != nil {
		b.Fatal(err)
	}
	nstest.Eventually(b, within, "the device is ready", func() bool { return dev.State().Ready })
	p, frames := dev.Pair(0), make([]Received, 64)
	for b.Loop() {
		if n, ok := p.Look(frames); n != 0 || !ok {
			b.Fatal(n, ok)
		}
	}
	_ = f.Close()
	<-ended
}
