package frontend

import (
	"errors"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const page = 4096

// A Log is the bitmap into which a backend logs the pages that it writes.
type Log struct {
	f    *Frontend
	fd   int
	bits []byte
}

// NewLog makes a log for the memory, which the backend does not know yet.
func (f *Frontend) NewLog() (*Log, error) {
	l := &Log{f: f, fd: -1}
	size := ((GuestBase+len(f.mem))/page/64 + 1) * 8
	var err error
	if l.fd, err = unix.MemfdCreate("log", unix.MFD_CLOEXEC); err == nil {
		err = unix.Ftruncate(l.fd, int64(size))
	}
	if err == nil {
		l.bits, err = unix.Mmap(l.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close releases the log.
func (l *Log) Close() error {
	var err error
	if l.bits != nil {
		err = unix.Munmap(l.bits)
	}
	if l.fd >= 0 {
		err = errors.Join(err, unix.Close(l.fd))
	}
	return err
}

// Give sends the log to the backend and waits for its reply.
func (l *Log) Give() error {
	if err := l.f.Send(SetLogBase, 1, Words(uint64(len(l.bits)), 0), l.fd); err != nil {
		return err
	}
	_, err := l.f.reply(SetLogBase)
	return err
}

// Ask has the backend log, or not.
func (l *Log) Ask(log bool) error {
	features, flags := l.f.Features, uint32(0)
	if log {
		features, flags = features|LogAll, 1
	}
	err := l.f.Tell(SetFeatures, Words(features))
	for _, p := range l.f.Pair {
		err = errors.Join(err, p.place(&p.rx, flags), p.place(&p.tx, flags))
	}
	return err
}

// Start gives the log to the backend, and has it log.
func (l *Log) Start() error { return errors.Join(l.Give(), l.Ask(true)) }

// Shrink empties the file of the log while the backend uses it. The log must not be used
// afterwards.
func (l *Log) Shrink() error { return unix.Ftruncate(l.fd, 0) }

// Take returns the numbers of the logged pages of the memory, sorted, and clears them. Pages at
// addresses without memory are negative.
func (l *Log) Take() (pages []int) {
	for at := 0; at < len(l.bits); at += 8 {
		word := atomic.SwapUint64((*uint64)(unsafe.Pointer(&l.bits[at])), 0)
		for bit := 0; word != 0; bit, word = bit+1, word>>1 {
			if word&1 != 0 { // on a little-endian machine
				n := at*8 + bit - GuestBase/page
				if n >= len(l.f.mem)/page {
					n = -n
				}
				pages = append(pages, n)
			}
		}
	}
	return pages
}

// Room returns where in the memory the ring to the driver, or from it, is with its buffers.
func (p *Pair) Room(from bool) (start, end int) {
	s := &p.rx
	if from {
		s = &p.tx
	}
	return s.start, s.end
}

// UsedRing returns the pages of the memory that the used ring from the driver is in.
func (p *Pair) UsedRing() (pages []int) {
	for n := p.tx.used / page; n <= (p.tx.used+6+8*p.f.Ring-1)/page; n++ {
		pages = append(pages, n)
	}
	return pages
}
