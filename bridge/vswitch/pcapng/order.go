// Package pcapng writes captured frames for people, and for programs such as Wireshark: those that a switch has captured.
package pcapng

import (
	"bytes"
	"container/heap"
	"time"

	"vmnet/bridge/vswitch"
)

// Bounds of an Order: a frame waits so long for earlier ones, and no more frames wait.
const (
	Patience  = 50 * time.Millisecond
	maxFrames = 4096
	maxBytes  = 64 << 20
)

// An Order gives captured frames in the order of their times. They come in another: a switch tells of a frame that came in when
// it has told of those that left, and each of its goroutines tells on its own.
type Order struct {
	waiting waiting
	bytes   int
	number  uint64
}

// Push takes a frame, whose data it copies.
func (o *Order) Push(f vswitch.CapturedFrame) {
	f.Data = bytes.Clone(f.Data)
	heap.Push(&o.waiting, numbered{f, o.number})
	o.number++
	o.bytes += len(f.Data)
}

// Pop gives the next frame whose turn it is at a time; there may be none.
func (o *Order) Pop(now time.Time) (f vswitch.CapturedFrame, ok bool) {
	if len(o.waiting) == 0 {
		return f, false
	}
	full := len(o.waiting) > maxFrames || o.bytes > maxBytes
	if !full && o.waiting[0].Time.After(now.Add(-Patience)) {
		return f, false
	}
	return o.Rest()
}

// Rest gives the next frame, whose turn it may be or not.
func (o *Order) Rest() (f vswitch.CapturedFrame, ok bool) {
	if len(o.waiting) == 0 {
		return f, false
	}
	f = heap.Pop(&o.waiting).(numbered).CapturedFrame
	o.bytes -= len(f.Data)
	return f, true
}

// numbered is a frame and when it came, among those of the same time.
type numbered struct {
	vswitch.CapturedFrame
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
