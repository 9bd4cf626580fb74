package vswitch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A journal has how far a stream has come, in memory that outlives this process: its file. Another
// process can go on with the stream if this one is killed, unless that was in the middle of a read
// or a write, whose bytes nobody has counted, or frames waited for the other end.
//
// SIGKILL stops a thread between two instructions, so what was stored before is there.
type journal struct {
	head *journalHead
	room []byte // of the unframer
	all  []byte // the mapping
}

// journalHead is at the beginning of the file, and the room follows.
type journalHead struct {
	reading, writing atomic.Uint32 // 1: the rest of the head may be out of date
	start, end       uint32        // of the room's bytes that were read and not taken
	skip             uint32        // bytes to come of a frame that is too long
	_                uint32
	messages         atomic.Uint64 // of a frontend, counted before they are read
}

const (
	journalSpace = 64 // of the head in bytes
	journalSize  = journalSpace + vnetLen + streamRoom
	journalSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
)

// NewJournal makes the file of Wire.Keep, which the caller owns.
func NewJournal() (*os.File, error) {
	fd, err := unix.MemfdCreate("vmnet stream", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("journal of a stream: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal of a stream")
	err = unix.Ftruncate(fd, journalSize)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, journalSeals)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal of a stream: %w", err), f.Close())
	}
	return f, nil
}

// Keep makes a stream with one connection note in a file of NewJournal how far it has come. If
// killed is set, the stream goes on where a process has come that was killed. Call it before Resume
// and AddPort. The caller keeps the file.
//
// Of a vhost-user port, the file has how many messages of its frontend were read. So a session that
// was stored before the switch was killed (Port.Session) is known to be the latest.
func (w *Wire) Keep(f *os.File, killed bool) error {
	if w.frontends != nil {
		return w.frontends.keep(f)
	}
	q := w.stream
	if q == nil || !q.once || q.in == nil {
		return errors.New("journal: the port is no stream with one connection")
	}
	j, err := openJournal(f)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	u := &unframer{room: j.room, start: vnetLen, end: vnetLen, copies: q.found.copies}
	if killed {
		if err := j.restore(u); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	q.found, q.journal, q.out.journal = u, j, j
	j.written()
	j.settle(u)
	return nil
}

func openJournal(f *os.File) (*journal, error) {
	own, err := duplicateAs(f, func(fd int) error {
		seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
		if err != nil || seals&unix.F_SEAL_SHRINK == 0 { // memory that goes away would end this process
			return errors.Join(errors.New("it is no sealed memfd"), err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Size != journalSize {
			return errors.Join(fmt.Errorf("%d bytes: want %d", st.Size, journalSize), err)
		}
		return nil
	}, newFile)
	if err != nil {
		return nil, err
	}
	j := &journal{}
	err = own.control(func(fd int) (err error) {
		j.all, err = unix.Mmap(fd, 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	})
	if err = errors.Join(err, own.close()); err != nil {
		return nil, err
	}
	j.head, j.room = (*journalHead)(unsafe.Pointer(&j.all[0])), j.all[journalSpace:]
	runtime.AddCleanup(j, func(all []byte) { _ = unix.Munmap(all) }, j.all)
	return j, nil
}

// restore takes what another process has noted.
func (j *journal) restore(u *unframer) error {
	h := j.head
	if h.reading.Load() != 0 || h.writing.Load() != 0 {
		return errors.New("the switch was killed in the middle of a frame")
	}
	start, end, skip := int(h.start), int(h.end), int(h.skip)
	if start < vnetLen || start > end || end > len(u.room) || skip > maxSkip {
		return fmt.Errorf("it has bytes %d to %d of %d, and %d to skip", start, end, len(u.room), skip)
	}
	u.start, u.end, u.skip = start, end, skip
	return nil
}

// read begins a read or a look at what was read. A nil journal does nothing.
func (j *journal) read() {
	if j != nil {
		j.head.reading.Store(1)
	}
}

// settle ends it.
func (j *journal) settle(u *unframer) {
	if j == nil {
		return
	}
	j.head.start, j.head.end, j.head.skip = uint32(u.start), uint32(u.end), uint32(u.skip)
	j.head.reading.Store(0)
}

// write begins a write, and written ends it, once all that was begun is written.
func (j *journal) write() {
	if j != nil {
		j.head.writing.Store(1)
	}
}

func (j *journal) written() {
	if j != nil {
		j.head.writing.Store(0)
	}
}
