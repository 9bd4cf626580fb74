// Package pcapng writes the frames that a switch has captured, as lines of text or as a file for
// programs such as Wireshark.
package pcapng

import (
	"bytes"
	"container/heap"
	"time"

	"vmnet/bridge/vswitch/capture"
)

// Limits of an Order: how long a frame waits for earlier ones, and how many frames and bytes may
// wait.
const (
	Patience  = 50 * time.Millisecond
	maxFrames = 4096
	maxBytes  = 64 << 20
)

// An Order sorts captured frames by time. They arrive in a different order: a switch reports an
// incoming frame after the outgoing frames that it caused, and each of its goroutines reports
// independently.
type Order struct {
	waiting waiting
	bytes   int
	number  uint64
}

// Push adds a frame and copies its data.
func (o *Order) Push(f capture.Frame) {
	f.Data = bytes.Clone(f.Data)
	heap.Push(&o.waiting, numbered{f, o.number})
	o.number++
	o.bytes += len(f.Data)
}

// Pop returns the next frame that has waited long enough at the time now. ok is false if there is
// none.
func (o *Order) Pop(now time.Time) (f capture.Frame, ok bool) {
	if len(o.waiting) == 0 {
		return f, false
	}
	full := len(o.waiting) > maxFrames || o.bytes > maxBytes
	if !full && o.waiting[0].Time.After(now.Add(-Patience)) {
		return f, false
	}
	return o.Rest()
}

// Rest returns the next frame, even if it has not waited long enough. ok is false if no frame
// waits.
func (o *Order) Rest() (f capture.Frame, ok bool) {
	if len(o.waiting) == 0 {
		return f, false
	}
	f = heap.Pop(&o.waiting).(numbered).Frame
	o.bytes -= len(f.Data)
	return f, true
}

// numbered is a frame with its sequence number, which orders frames of the same time.
type numbered struct {
	capture.Frame
	number uint64
}

type waiting []numbered

func (w waiting) Len() int { return len(w) }

func (w waiting) Less(i, j int) bool {
	if !w[i].Time.Equal(w[j].Time) {
		return w[i].Time.Before(w[j].Time)
	}
	return w[i].number < w[j].number
}

func (w waiting) Swap(i, j int) { w[i], w[j] = w[j], w[i] }
func (w *waiting) Push(x any)   { *w = append(*w, x.(numbered)) }

func (w *waiting) Pop() any {
	last := len(*w) - 1
	x := (*w)[last]
	(*w)[last] = numbered{}
	*w = (*w)[:last]
	return x
}
