package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/internal/vhostuser/guestmem"
)

// A session is what one frontend's connection has set up.
type session struct {
	*Device
	conn     *net.UnixConn
	owned    bool
	protocol uint64
	tables   int // messages about memory
	rarps    int // announcements
}

// Serve handles a frontend's messages until it closes its end, misbehaves, or the device is closed,
// and closes conn. The rings are stopped and the memory is unmapped when it returns. The error is
// nil if the frontend has closed its end. Only one session is served at a time.
func (d *Device) Serve(conn *net.UnixConn) error {
	s := &session{Device: d, conn: conn}
	if err := d.begin(s); err != nil {
		return errors.Join(err, conn.Close())
	}
	return d.run(s, nil)
}

// run serves a session that has begun, unless it could not be set up because of err.
func (d *Device) run(s *session, err error) error {
	conn := s.conn
	if err == nil {
		s.changed()
		err = s.serve(newReceiver(conn))
	}
	d.handOver(err)
	if failed := d.reset(); failed != nil {
		err = failed // why the connection was closed from this side
	}
	_ = conn.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}

func (s *session) serve(r *receiver) error {
	for {
		if err := s.await(r.conn); err != nil {
			return err
		}
		m, err := r.receive()
		if err != nil {
			return err
		}
		err = s.answer(&m)
		m.close()
		if err != nil {
			return err
		}
		s.handled.Add(1)
		if s.settled != nil {
			s.settled()
		}
	}
}

// await waits for a message, and counts it before it is read.
func (s *session) await(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errSuspended
	}
	if err == nil && s.counter != nil {
		s.counter.Add(1)
	}
	return err
}

// answer handles a message and sends its reply, if it has one.
func (s *session) answer(m *message) error {
	body, err := s.handle(m)
	if err != nil {
		err = fmt.Errorf("%v: %w", m.request, err)
	}
	if body == nil && m.flags&wantsReply != 0 && s.protocol&protocolReplyAck != 0 {
		body = word(0)
		if err != nil {
			body = word(1)
		}
	}
	if body != nil {
		err = errors.Join(err, m.reply(s.conn, body))
	}
	s.changed()
	return err
}

func (s *session) handle(m *message) (reply []byte, err error) {
	switch m.request {
	case getFeatures:
		return word(s.offers()), nil
	case setFeatures:
		return nil, s.setFeatures(m)
	case getProtocolFeatures:
		return word(offeredProtocol), nil
	case setProtocolFeatures:
		return nil, s.setProtocol(m)
	case getQueueNum:
		return word(uint64(s.pairs)), nil
	case getMaxMemSlots:
		return word(guestmem.MaxAreas), nil
	case setOwner:
		return nil, s.setOwner()
	case resetOwner:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.owned = false
		return nil, nil
	case setMTU:
		return nil, s.setMTU(m)
	case setMemTable:
		return nil, s.setMemory(m)
	case addMemReg:
		return nil, s.addRegion(m)
	case remMemReg:
		return nil, s.removeRegion(m)
	case setLogBase:
		return s.setLogBase(m)
	case setLogFD:
		return nil, s.setLogFile(m)
	case sendRARP:
		return nil, s.sendRARP(m)
	case setVringNum, setVringBase, setVringEnable, getVringBase:
		return s.setRing(m)
	case setVringAddr:
		return nil, s.setAddr(m)
	case setVringKick, setVringCall, setVringErr:
		return nil, s.setFile(m)
	}
	return nil, errUnknown
}

func (s *session) setFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if odd := v &^ s.offers(); odd != 0 {
		return fmt.Errorf("features %#x were not offered", odd)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch changed := v ^ s.features; {
	case changed&^featureLogAll != 0 && s.running():
		return errors.New("the rings are in use")
	case v&featureLogAll != 0 && s.protocol&protocolLog == 0:
		return errors.New("a log needs the protocol feature LOG_SHMFD")
	}
	logged := s.features&featureLogAll != 0
	s.features = v
	if logged && v&featureLogAll == 0 {
		s.dropLog()
	}
	return s.relog()
}

// setOwner begins the session, which a frontend does once. A QEMU that waits for a backend and has
// lost one sets the next one up twice: it calls net_vhost_user_event in net/vhost-user.c when it
// accepts the connection, and again when it sets its handlers. Each call watches the connection,
// and only the last watch is removed with the netdev. The other one would crash QEMU when the
// connection ends. If the session ends here, QEMU removes the first watch and makes no second one.
func (s *session) setOwner() error {
	if s.owned {
		return errors.New("the session has begun already")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owned = true
	return nil
}

func (s *session) setProtocol(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if odd := v &^ offeredProtocol; odd != 0 {
		return fmt.Errorf("protocol features %#x were not offered", odd)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.protocol = v
	return nil
}

func (s *session) setMTU(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v < minMTU || v > maxMTU {
		return fmt.Errorf("MTU %d: want %d to %d", v, minMTU, maxMTU)
	}
	s.mtu.Store(int64(v))
	return nil
}

// setRing handles the messages that have a ring's index and a number.
func (s *session) setRing(m *message) (reply []byte, err error) {
	index, value, err := m.state()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.vring(index)
	if err != nil {
		return nil, err
	}
	if r.ring != nil && (m.request == setVringNum || m.request == setVringBase) {
		return nil, fmt.Errorf("ring %d is in use", index)
	}
	switch m.request {
	case setVringNum:
		r.layout.Size = value
	case setVringBase:
		r.base = uint16(value)
	case setVringEnable:
		r.enabled, r.disabled = value == 1, value != 1
		s.wake(index)
	case getVringBase:
		base := uint32(r.stop())
		s.wake(index)
		if !s.running() { // QEMU frees the log, and sends another one if it starts the rings again
			s.dropLog()
			err = s.relog()
		}
		return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, uint32(index)), base), err
	}
	return nil, nil
}

func (s *session) setAddr(m *message) error {
	a, err := m.addr()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.vring(int(a.index))
	if err != nil {
		return err
	}
	r.layout.Desc, r.layout.Used, r.layout.Avail = a.desc, a.used, a.avail
	r.layout.Logged, r.layout.Log = a.flags&vringLogged != 0, a.log
	if r.ring != nil {
		return r.ring.Place(s.mem, r.layout)
	}
	return nil
}

// setFile handles the messages that bring a ring's eventfd. A ring is in use from the moment that
// its kicks can be heard.
func (s *session) setFile(m *message) error {
	index, fd, err := m.ringFile()
	if err != nil {
		return err
	}
	f, err := takeEvent(fd)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.vring(index)
	if err != nil {
		return errors.Join(err, f.close())
	}
	switch {
	case m.request == setVringCall:
		if err := r.setCall(f); err != nil {
			return err
		}
		if r.ring != nil {
			r.interrupt() // the old file may have got the last one
		}
		return nil
	case m.request == setVringErr:
		return f.close()
	case f == nil:
		return errors.New("a ring without a kick file: this backend does not poll")
	}
	r.stop() // a ring in use goes on where it is
	r.kick = f
	if s.features&featureProtocol == 0 {
		r.enabled = true
	}
	s.wake(index)
	return r.start(s.mem, s.features)
}
