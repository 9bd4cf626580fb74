package offload

import (
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

// BenchmarkLiveScatter writes the segments of 64 KiB to a tap: each as the two pieces that a
// Finisher returns, or copied into one piece first.
func BenchmarkLiveScatter(b *testing.B) {
	requireRoot(b)
	q := newTap(b, nstest.New(b), "x", 0)
	h, frame := shape{payload: 65000, gso: 1448, tcpOptions: 12}.build()
	f := new(Finisher)
	each := func(b *testing.B, send func(Frame) error) {
		b.SetBytes(int64(len(frame)))
		for b.Loop() {
			f.Start(h, frame, Limits{VnetHdr: HeaderLen})
			for frames := f.Next(); len(frames) > 0; frames = f.Next() {
				for _, g := range frames {
					if err := send(g); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
	}
	b.Run("pieces", func(b *testing.B) {
		each(b, func(g Frame) error {
			_, err := unix.Writev(q.fd, [][]byte{g.Head, g.Payload})
			return err
		})
	})
	b.Run("copy", func(b *testing.B) {
		buf := make([]byte, 4096)
		each(b, func(g Frame) error {
			n := copy(buf, g.Head)
			n += copy(buf[n:], g.Payload)
			_, err := unix.Write(q.fd, buf[:n])
			return err
		})
	})
	b.Run("nothing", func(b *testing.B) { each(b, func(Frame) error { return nil }) })
}
