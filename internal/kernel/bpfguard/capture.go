package bpfguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/rtnl"
)

// captureObject is the compiled program of a capture, parsed once. Its users copy it.
var captureObject = sync.OnceValues(loadCapture)

// A Dropped is a frame that port security, or the filter of what comes in, has dropped.
type Dropped struct {
	Time      time.Time
	Reason    string
	FromGuest bool
	Length    int    // in bytes, of the whole Ethernet frame
	Data      []byte // its first bytes, at most 256
}

// A Capture receives copies of the frames that are dropped at a link. While there is none, and for
// frames that pass, it costs nothing. Programs that replace those of the link continue it. The
// kernel ends it with its process, however that ends. Its methods except Close are for one
// goroutine.
type Capture struct {
	reader *ringbuf.Reader
	frames *ebpf.Map
	lost   *ebpf.Map
	places []place
	boot   time.Time // when the clock of the records was 0
	kept   time.Time // when keep has looked
	record ringbuf.Record
}

// A place is one of a program's captures.
type place struct {
	captures *ebpf.Map
	slot     uint32
	program  *ebpf.Program
}

// refusedBase is what the program of a capture adds to the reasons of inbound.c.
const refusedBase = 256

// OpenCapture begins a capture at a link. c is a socket in the link's netns. If the link has no
// programs that drop frames, the error matches fs.ErrNotExist with errors.Is. It needs
// CAP_SYS_ADMIN. Close the Capture.
func OpenCapture(c *rtnl.Conn, l *rtnl.Link) (_ *Capture, err error) {
	k := &Capture{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("capture what is dropped at %s: %w", l.Name, err), k.Close())
		}
	}()
	guard, guardErr := find(c, l)
	filters, err := findInbound(c, l)
	for _, p := range []struct {
		*loaded
		err  error
		base uint32
	}{{guard, guardErr, 0}, {filters, err, refusedBase}} {
		if p.loaded == nil {
			if !errors.Is(p.err, fs.ErrNotExist) {
				return nil, p.err
			}
			continue
		}
		defer p.Close()
		if err := k.join(p.maps[guardMapCaptures], p.base); err != nil {
			return nil, err
		}
	}
	if k.frames == nil {
		return nil, errors.Join(guardErr, err)
	}
	k.reader, err = ringbuf.NewReader(k.frames)
	return k, err
}

// join has a program call the one of this capture.
func (k *Capture) join(captures *ebpf.Map, base uint32) error {
	captures, err := captures.Clone()
	if err != nil {
		return err
	}
	most := captures.MaxEntries()
	for slot := range most {
		var taken uint32
		if captures.Lookup(slot, &taken) == nil {
			continue
		}
		p, err := k.load(captures, slot, base)
		if err == nil {
			err = captures.Put(slot, p)
		}
		if err != nil {
			return errors.Join(err, captures.Close())
		}
		k.places = append(k.places, place{captures, slot, p})
		return nil
	}
	return errors.Join(fmt.Errorf("%d captures run there already (end one of them)", most), captures.Close())
}

// load loads the program of a capture for one place. The first one makes the ring buffer.
func (k *Capture) load(captures *ebpf.Map, slot, base uint32) (*ebpf.Program, error) {
	maps := map[string]*ebpf.Map{captureMapCaptures: captures}
	if k.frames != nil {
		maps[captureMapFrames], maps[captureMapLost] = k.frames, k.lost
	}
	var all struct {
		capturePrograms
		Frames *ebpf.Map `ebpf:"frames"`
		Lost   *ebpf.Map `ebpf:"lost"`
	}
	at := capturePlace{Slot: slot, Base: base}
	if err := security.load(captureObject, captureVarPlace, at, maps, &all); err != nil {
		return nil, err
	}
	if k.frames == nil {
		k.frames, k.lost = all.Frames, all.Lost
		return all.VmnetCapture, k.setClock()
	}
	return all.VmnetCapture, errors.Join(all.Frames.Close(), all.Lost.Close())
}

// setClock relates the clock of bpf_ktime_get_ns to the time of day.
func (k *Capture) setClock() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	k.boot = time.Now().Add(-time.Duration(now.Nano()))
	return nil
}

// SetDeadline bounds the waits of Next; the zero time is no bound.
func (k *Capture) SetDeadline(t time.Time) { k.reader.SetDeadline(t) }

// keepEvery is how often keep looks.
const keepEvery = 50 * time.Millisecond

// keep takes the capture's places again. The kernel empties the array of a program's captures some
// time after the last process has closed it (prog_array_map_clear in kernel/bpf/arraymap.c): mostly
// before the next capture begins, but after that if the two are only milliseconds apart.
func (k *Capture) keep() error {
	if time.Since(k.kept) < keepEvery {
		return nil
	}
	k.kept = time.Now()
	for _, p := range k.places {
		var taken uint32
		err := p.captures.Lookup(p.slot, &taken)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			err = p.captures.Put(p.slot, p.program)
		}
		if err != nil {
			return fmt.Errorf("keep a capture's place: %w", err)
		}
	}
	return nil
}

// The offsets of struct record in capture.c.
const (
	recordReason = 8
	recordLength = 12
	recordTag    = 16
	recordLen    = 20
	recordData   = 24
)

// Next waits for a frame, whose Data is valid until the next call. If the deadline passes, the
// error matches os.ErrDeadlineExceeded with errors.Is; each call looks after the capture's places
// (keep), so a capture whose deadlines are at most a second apart misses no frames for longer.
func (k *Capture) Next() (Dropped, error) {
	if err := k.keep(); err != nil {
		return Dropped{}, err
	}
	if err := k.reader.ReadInto(&k.record); err != nil {
		return Dropped{}, fmt.Errorf("read dropped frames: %w", err)
	}
	b := k.record.RawSample
	if len(b) < recordData {
		return Dropped{}, fmt.Errorf("read dropped frames: a record of %d bytes", len(b))
	}
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	d := Dropped{
		Time:   k.boot.Add(time.Duration(binary.NativeEndian.Uint64(b))),
		Length: int(word(recordLength)),
		Data:   b[recordData:][:min(int(word(recordLen)), len(b)-recordData)],
	}
	if tag := word(recordTag); tag != 0 && len(d.Data) >= 12 { // as it was in the frame
		d.Length += 4
		head := append(append([]byte{}, d.Data[:12]...), 0x81, 0, byte(tag>>8), byte(tag))
		d.Data = append(head, d.Data[12:]...)
	}
	if why := word(recordReason); why >= refusedBase {
		d.Reason = inbound.Refused
	} else {
		d.Reason, d.FromGuest = portsec.Reason(why).String(), true
	}
	return d, nil
}

// Lost returns how many frames were lost because they were not read in time.
func (k *Capture) Lost() (uint64, error) {
	var total [1]uint64
	l := loaded{maps: map[string]*ebpf.Map{captureMapLost: k.lost}}
	err := l.count(captureMapLost, total[:])
	return total[0], err
}

// Close ends the capture.
func (k *Capture) Close() error {
	var errs []error
	for _, p := range k.places {
		err := p.captures.Delete(p.slot)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			err = nil
		}
		errs = append(errs, err, p.captures.Close(), p.program.Close())
	}
	if k.reader != nil {
		errs = append(errs, k.reader.Close())
	}
	for _, m := range []*ebpf.Map{k.frames, k.lost} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
