package vswitch

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A ring writes many frames to a tap in one system call, with io_uring(7). A write(2) passes only
// one frame to a tap, and sendmmsg(2) works only for sockets. The ring saves more than system
// calls: if the receiver runs on the same CPU, the first frame wakes it, and it would run before
// the second one is written. The order of frames is kept, since none of the requests waits.
//
// Structs and constants are from include/uapi/linux/io_uring.h.
type ring struct {
	fd     int
	sq, cq queueOfRing
	sqes   *[batchSize]sqe
	cqes   unsafe.Pointer // array of cqe
	maps   [][]byte

	// the kernel cannot write to taps without waiting: before Linux 5.11 (FMODE_NOWAIT in
	// drivers/net/tun.c)
	refused bool
}

// queueOfRing has the head and tail of one of the ring's two queues, in memory shared with the
// kernel.
type queueOfRing struct {
	head, tail *atomic.Uint32
	mask       uint32
}

// sqe is struct io_uring_sqe, a request.
type sqe struct {
	opcode   uint8
	_        [3]byte
	fd       int32
	_, addr  uint64
	len      uint32
	flags    uint32 // rw_flags
	userData uint64
	_        [24]byte
}

// cqe is struct io_uring_cqe, the completion of a request.
type cqe struct {
	userData uint64
	res      int32
	_        uint32
}

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32

	_     [3]uint32
	sqOff struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cqOff struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

const (
	opWritev      = 2       // IORING_OP_WRITEV, Linux 5.1
	opWrite       = 23      // IORING_OP_WRITE, Linux 5.6
	enterEvents   = 1       // IORING_ENTER_GETEVENTS
	singleMmap    = 1       // IORING_FEAT_SINGLE_MMAP, Linux 5.4
	offsetRings   = 0       // IORING_OFF_SQ_RING
	offsetEntries = 1 << 28 // IORING_OFF_SQES, times 16
)

// newRing makes a ring. It fails if the kernel is too old, or if io_uring is forbidden, as in many
// containers.
func newRing() (*ring, error) {
	var p ringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, batchSize, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	unix.CloseOnExec(int(fd))
	r := &ring{fd: int(fd)}
	if err := r.mapQueues(&p); err != nil {
		r.close()
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	return r, nil
}

func (r *ring) mapQueues(p *ringParams) error {
	if p.features&singleMmap == 0 || p.sqEntries != batchSize {
		return fmt.Errorf("features %#x, %d entries: %w", p.features, p.sqEntries, unix.EOPNOTSUPP)
	}
	size := max(p.sqOff.array+p.sqEntries*4, p.cqOff.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	queues, err := r.mmap(offsetRings, int(size))
	if err != nil {
		return err
	}
	entries, err := r.mmap(offsetEntries, batchSize*int(unsafe.Sizeof(sqe{})))
	if err != nil {
		return err
	}
	word := func(off uint32) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&queues[off])) }
	r.sq = queueOfRing{word(p.sqOff.head), word(p.sqOff.tail), word(p.sqOff.mask).Load()}
	r.cq = queueOfRing{word(p.cqOff.head), word(p.cqOff.tail), word(p.cqOff.mask).Load()}
	r.sqes = (*[batchSize]sqe)(unsafe.Pointer(&entries[0]))
	r.cqes = unsafe.Pointer(&queues[p.cqOff.cqes])
	for i := range uint32(batchSize) { // request i is always entry i
		word(p.sqOff.array + i*4).Store(i)
	}
	return nil
}

func (r *ring) mmap(off int64, size int) ([]byte, error) {
	b, err := unix.Mmap(r.fd, off, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err == nil {
		r.maps = append(r.maps, b)
	}
	return b, err
}

func (r *ring) close() {
	for _, m := range r.maps {
		_ = unix.Munmap(m)
	}
	_ = unix.Close(r.fd)
}

// write writes the list of s to a tap's queue, and records the result of each frame. After an error
// the ring must not be used again. With EOPNOTSUPP nothing was written; with any other error the
// rest of the list is dropped.
func (r *ring) write(fd uintptr, s *sender) error {
	tail := r.sq.tail.Load()
	for i := range s.n {
		r.sqes[(tail+uint32(i))&r.sq.mask] = s.request(fd, i)
	}
	r.sq.tail.Store(tail + uint32(s.n))
	for submitted, done := 0, 0; done < s.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(s.n-submitted),
			uintptr(s.n-done), enterEvents, 0, 0)
		if errno == 0 {
			submitted += int(n)
		}
		done += r.reap(s)
		if errno != 0 && errno != unix.EINTR {
			s.drop(done, s.n, Full)
			return errno
		}
	}
	runtime.KeepAlive(s)
	if r.refused {
		return unix.EOPNOTSUPP
	}
	return nil
}

// request returns the request that writes the list's frame i. It needs RWF_NOWAIT: with O_NONBLOCK
// alone, a ring would wait for room (io_rw_init_file in io_uring/rw.c).
func (s *sender) request(fd uintptr, i int) sqe {
	f := &s.list[i]
	e := sqe{
		opcode: opWrite, fd: int32(fd), addr: addressOf(f.Head), len: uint32(len(f.Head)),
		flags: unix.RWF_NOWAIT, userData: uint64(i),
	}
	if v := s.vector(i); len(v) > 1 {
		e.opcode, e.addr, e.len = opWritev, uint64(uintptr(unsafe.Pointer(&v[0]))), uint32(len(v))
	}
	return e
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

func (r *ring) reap(s *sender) (n int) {
	head, tail := r.cq.head.Load(), r.cq.tail.Load()
	for ; head != tail; head++ {
		c := (*cqe)(unsafe.Add(r.cqes, uintptr(head&r.cq.mask)*unsafe.Sizeof(cqe{})))
		if errno := syscall.Errno(max(0, -c.res)); errno == unix.EOPNOTSUPP {
			r.refused = true
		} else {
			s.note(int(c.userData), errno)
		}
		n++
	}
	r.cq.head.Store(head)
	return n
}
