// Package frontend is the other side of package vhostuser, for tests and benchmarks: it shares a
// memfd with a backend, and is the driver of a virtio-net device in that memory.
package frontend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of the protocol (docs/interop/vhost-user.rst of QEMU).
const (
	GetFeatures         = 1
	SetFeatures         = 2
	SetOwner            = 3
	SetMemTable         = 5
	SetLogBase          = 6
	SetLogFD            = 7
	SetVringNum         = 8
	SetVringAddr        = 9
	SetVringBase        = 10
	GetVringBase        = 11
	SetVringKick        = 12
	SetVringCall        = 13
	GetProtocolFeatures = 15
	SetProtocolFeatures = 16
	GetQueueNum         = 17
	SetVringEnable      = 18
	SendRARP            = 19
	SetMTU              = 20
	GetMaxMemSlots      = 36
	AddMemReg           = 37
	RemMemReg           = 38
)

// Features of the device and the protocol, as bits of a word.
const (
	Mergeable  = 1 << 15
	Indirect   = 1 << 28
	EventIndex = 1 << 29
	LogAll     = 1 << 26
	Protocol   = 1 << 30
	Version1   = 1 << 32
	CSum       = 1 << 0
	GuestCSum  = 1 << 1
	GuestTSO4  = 1 << 7

	ReplyAck = 1 << 3
)

// GuestBase is the physical address at which the memory is.
const GuestBase = 0x10000

// Config says how a frontend should be. Its zero value is one pair of rings of 256 descriptors,
// with all features of the backend and buffers of 2048 bytes.
type Config struct {
	Pairs    int
	Ring     int // descriptors of a ring
	Buffer   int // size in bytes of a buffer for a received frame
	Room     int // the same for a sent frame; 0 means 68 KiB
	Without  uint64
	Pieces   int // descriptors of a sent frame; 0 means one
	Indirect bool

	Polls  bool // want no interrupts, and negotiate no event index, as DPDK's virtio-user does
	Bare   bool // negotiate no protocol features
	MTU    int
	Forget bool // set the base 0 when a backend comes back, as DPDK's virtio-user does
}

// A Frontend is a frontend that has set up its rings. Only one goroutine may use it.
type Frontend struct {
	Config
	Features uint64
	Pair     []*Pair

	conn *net.UnixConn
	fd   int // memfd
	mem  []byte
	acks bool
}

// answerTime limits the wait for a reply.
const answerTime = 20 * time.Second

// Connect connects to a backend that listens at a path, once it does.
func Connect(path string) (*net.UnixConn, error) {
	for end := time.Now().Add(answerTime); ; time.Sleep(time.Millisecond) {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil || time.Now().After(end) {
			return c, err
		}
	}
}

// New sets up a device by the backend on conn, whose ownership it takes.
func New(conn *net.UnixConn, cfg Config) (*Frontend, error) {
	f, err := Prepare(conn, cfg)
	if err != nil {
		return nil, err
	}
	if err := f.Setup(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Prepare makes a frontend that has sent nothing yet.
func Prepare(conn *net.UnixConn, cfg Config) (*Frontend, error) {
	f := &Frontend{Config: cfg, conn: conn, fd: -1}
	f.Pairs, f.Ring, f.Buffer = max(f.Pairs, 1), max(f.Ring, 0), max(f.Buffer, 0)
	if f.Ring == 0 {
		f.Ring = 256
	}
	if f.Buffer == 0 {
		f.Buffer = 2048
	}
	if f.Room == 0 {
		f.Room = frameRoom
	}
	size := 0
	for n := range f.Pairs {
		p := &Pair{f: f, n: n}
		size = p.layOut(size)
		f.Pair = append(f.Pair, p)
	}
	var err error
	if f.fd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC); err == nil {
		err = unix.Ftruncate(f.fd, int64(size))
	}
	if err == nil {
		f.mem, err = unix.Mmap(f.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	for _, p := range f.Pair {
		if err == nil {
			err = p.open()
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close closes the connection, and releases the memory and the rings.
func (f *Frontend) Close() error {
	err := f.conn.Close()
	for _, p := range f.Pair {
		p.close()
	}
	if f.mem != nil {
		err = errors.Join(err, unix.Munmap(f.mem))
		f.mem = nil
	}
	if f.fd >= 0 {
		err = errors.Join(err, unix.Close(f.fd))
		f.fd = -1
	}
	return err
}

// Shrink empties the file of the memory while the backend uses it. The frontend's own mapping must
// not be used afterwards.
func (f *Frontend) Shrink() error { return unix.Ftruncate(f.fd, 0) }

// User returns the memory's address in this process.
func (f *Frontend) User() uint64 { return uint64(uintptr(unsafe.Pointer(&f.mem[0]))) }

// Memory returns the shared memory and its file.
func (f *Frontend) Memory() ([]byte, int) { return f.mem, f.fd }

// Hangup closes the connection only.
func (f *Frontend) Hangup() error { return f.conn.Close() }

// Reconnect sets up the same rings, where they are now, by another connection.
func (f *Frontend) Reconnect(conn *net.UnixConn) error {
	f.conn = conn
	return f.Setup()
}

// Setup negotiates and starts the rings.
func (f *Frontend) Setup() error {
	v, err := f.Ask(GetFeatures, nil)
	if err != nil {
		return err
	}
	f.Features = v &^ (f.Without | LogAll)
	if f.Polls {
		f.Features &^= EventIndex
	}
	if f.Bare {
		f.Features &^= Protocol
	}
	if f.Features&Protocol != 0 {
		if v, err = f.Ask(GetProtocolFeatures, nil); err != nil {
			return err
		}
		err = f.Tell(SetProtocolFeatures, Words(v))
		f.acks = v&ReplyAck != 0
	}
	if err == nil {
		err = errors.Join(f.Tell(SetOwner, nil), f.Tell(SetFeatures, Words(f.Features)))
	}
	if err == nil && f.MTU != 0 {
		err = f.Tell(SetMTU, Words(uint64(f.MTU)))
	}
	if err == nil {
		err = f.Tell(SetMemTable, append(Words(1), Region(GuestBase, uint64(len(f.mem)), f.User(), 0)...), f.fd)
	}
	for _, p := range f.Pair {
		if err == nil {
			err = p.start()
		}
	}
	return err
}

// Words and Halves return the body of a message.
func Words(words ...uint64) (b []byte) {
	for _, w := range words {
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	return b
}

// Halves is Words for numbers of 32 bits.
func Halves(halves ...uint32) (b []byte) {
	for _, h := range halves {
		b = binary.NativeEndian.AppendUint32(b, h)
	}
	return b
}

// Region describes memory in a message.
func Region(guest, size, user, offset uint64) []byte { return Words(guest, size, user, offset) }

// Tell sends a message, and waits for its acknowledgment if the backend sends them.
func (f *Frontend) Tell(request uint32, body []byte, fds ...int) error {
	flags := uint32(1)
	if f.acks {
		flags |= 8
	}
	if err := f.Send(request, flags, body, fds...); err != nil || !f.acks {
		return err
	}
	v, err := f.reply(request)
	if err == nil && v != 0 {
		err = fmt.Errorf("request %d: the backend refuses it (%d)", request, v)
	}
	return err
}

// Ask sends a message and returns the number in its reply.
func (f *Frontend) Ask(request uint32, body []byte) (uint64, error) {
	if err := f.Send(request, 1, body); err != nil {
		return 0, err
	}
	return f.reply(request)
}

// Send sends a message.
func (f *Frontend) Send(request, flags uint32, body []byte, fds ...int) error {
	b := append(Halves(request, flags, uint32(len(body))), body...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := f.conn.WriteMsgUnix(b, oob, nil)
	return err
}

func (f *Frontend) reply(request uint32) (uint64, error) {
	_ = f.conn.SetReadDeadline(time.Now().Add(answerTime))
	var b [20]byte
	if _, err := io.ReadFull(f.conn, b[:]); err != nil {
		return 0, fmt.Errorf("request %d: %w", request, err)
	}
	if got := binary.NativeEndian.Uint32(b[:]); got != request || b[4] != 5 || b[8] != 8 {
		return 0, fmt.Errorf("request %d: reply to %d, flags %#x, %d bytes", request, got, b[4], b[8])
	}
	return binary.NativeEndian.Uint64(b[12:]), nil
}

// WaitClosed waits until the backend has closed the connection.
func (f *Frontend) WaitClosed() error {
	_ = f.conn.SetReadDeadline(time.Now().Add(answerTime))
	for {
		if _, err := f.conn.Read(make([]byte, 64)); errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
