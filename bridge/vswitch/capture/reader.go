package capture

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/sockopt"
)

// A Frame is a captured frame as it passed a port. An outgoing frame has the form that the port
// sends: retagged, finished, or a segment.
type Frame struct {
	Time      time.Time
	Port      int // index in Config.Ports
	Queue     int
	Direction Direction
	Reason    string         // why it was dropped; "" if it was not
	Vnet      offload.Header // the offloads still to be done; plain for a port without vnet headers
	Length    int            // length of the Ethernet frame in bytes
	Data      []byte         // its first bytes, up to the snaplen; valid until the next call of Next
}

// Totals counts the frames of one port and direction that a capture should have received.
type Totals struct {
	Port      int
	Direction Direction
	Seen      uint64
	Lost      uint64 // the part of Seen that did not reach the reader
}

// bufferSize is the size in bytes to which the buffers of the socketpair are raised, if that is
// permitted.
const bufferSize = 16 << 20

// A Reader is the reader's end of a capture. One goroutine reads; any goroutine may call
// Stop and Close.
type Reader struct {
	f      *os.File
	buf    []byte
	totals map[[2]int]*totals // by port and direction
}

type totals struct {
	Totals
	got uint64
}

// Pipe makes a reader and the file for Switch.Capture, which the caller closes after that
// call. The buffers limit how many frames may arrive at once. They are 16 MiB with CAP_NET_ADMIN,
// and net.core.wmem_max without.
func Pipe() (*Reader, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "capture"), os.NewFile(uintptr(fds[1]), "capture")
	if err := sockopt.RaiseBuffers(fds[1], bufferSize); err != nil {
		return nil, nil, errors.Join(err, near.Close(), far.Close())
	}
	return &Reader{f: near, buf: make([]byte, maxRecord+1), totals: map[[2]int]*totals{}}, far, nil
}

// Next waits for a frame and returns it. At the end of the capture it returns io.EOF; the totals
// are then complete. If the reader's deadline passes, the error matches os.ErrDeadlineExceeded with
// errors.Is.
func (r *Reader) Next() (Frame, error) {
	for {
		n, err := r.f.Read(r.buf)
		switch {
		case errors.Is(err, unix.ECONNRESET): // the switch was killed
			return Frame{}, io.EOF
		case errors.Is(err, io.EOF):
			return Frame{}, io.EOF
		case err != nil:
			return Frame{}, fmt.Errorf("read captured frames: %w", err)
		}
		f, more, err := r.parse(r.buf[:n])
		if err != nil {
			return Frame{}, fmt.Errorf("read captured frames: %w", err)
		}
		if more {
			return f, nil
		}
	}
}

var errRecord = errors.New("not a record of this version's switch")

// parse parses a record and reports whether it has a frame.
func (r *Reader) parse(b []byte) (f Frame, frame bool, err error) {
	if len(b) < headLen || len(b) > maxRecord || b[1] > byte(Out) {
		return f, false, errRecord
	}
	port, d := int(binary.LittleEndian.Uint16(b[2:])), Direction(b[1])
	if port >= vport.MaxPorts {
		return f, false, errRecord
	}
	t := r.of(port, d)
	switch b[0] {
	case kindTotals:
		t.Seen, t.Lost = binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		return f, false, nil
	case kindFrame:
	default:
		return f, false, errRecord
	}
	reason, vnet := int(b[6]), int(b[7])
	if len(b) < headLen+reason+vnet || vnet != 0 && (vnet < offload.HeaderLen || vnet > offload.MaxVnetHdr) {
		return f, false, errRecord
	}
	f = Frame{
		Time: time.Unix(0, int64(binary.LittleEndian.Uint64(b[8:]))), Port: port, Direction: d,
		Queue:  int(binary.LittleEndian.Uint16(b[4:])),
		Reason: string(b[headLen : headLen+reason]),
		Length: int(binary.LittleEndian.Uint32(b[24:])),
		Data:   b[headLen+reason+vnet:],
	}
	if f.Length < len(f.Data) {
		return f, false, errRecord
	}
	h, _ := offload.Parse(b[headLen+reason : headLen+reason+vnet])
	f.Vnet = h.WithoutTunnel()
	t.note(binary.LittleEndian.Uint64(b[16:]))
	return f, true, nil
}

func (r *Reader) of(port int, d Direction) *totals {
	key := [2]int{port, int(d)}
	if r.totals[key] == nil {
		r.totals[key] = &totals{Totals: Totals{Port: port, Direction: d}}
	}
	return r.totals[key]
}

// note counts a frame by its number. A number missing below the highest was lost, or has yet to
// arrive.
func (t *totals) note(number uint64) {
	t.got++
	t.Seen = max(t.Seen, number+1)
	t.Lost = t.Seen - min(t.Seen, t.got)
}

// Totals returns the current totals of all ports and directions. After io.EOF they are complete,
// unless the switch was killed: then frames that were lost after the last one that was read are
// missing.
func (r *Reader) Totals() []Totals {
	var all []Totals
	for _, t := range r.totals {
		all = append(all, t.Totals)
	}
	slices.SortFunc(all, func(a, b Totals) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Direction, b.Direction))
	})
	return all
}

// SetDeadline sets the time until which Next waits. The zero time means no limit.
func (r *Reader) SetDeadline(t time.Time) error { return r.f.SetReadDeadline(t) }

// Stop asks the switch to end the capture. Next still returns the frames in flight, then io.EOF.
func (r *Reader) Stop() error {
	return fdpass.Control(r.f, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) })
}

// Close closes the reader's end, which ends the capture.
func (r *Reader) Close() error { return r.f.Close() }
