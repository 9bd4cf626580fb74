package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

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
	if err := d.begin(conn); err != nil {
		return errors.Join(err, conn.Close())
	}
	err := s.serve(newReceiver(conn))
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
		m, err := r.receive()
		if err != nil {
			return err
		}
		err = s.answer(&m)
		m.close()
		if err != nil {
			return err
		}
	}
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

// A frontend may change memory freely messagesFree times, and then once every messagesPause: each
// change makes all processors of this process flush their translations. The same holds for
// announcements, which all other ports get.
const (
	messagesFree  = 64
	messagesPause = 10 * time.Millisecond
)

// slow counts messages of a kind, and waits if there were many.
func slow(count *int) {
	if *count++; *count > messagesFree {
		time.Sleep(messagesPause)
	}
}

func (s *session) setMemory(m *message) error {
	regions, err := m.regions()
	if err != nil {
		return err
	}
	slow(&s.tables)
	next := guestmem.New()
	for i, r := range regions {
		a, err := guestmem.Map(r, m.fds[i])
		if err != nil {
			next.Unmap()
			return err
		}
		next = next.With(a)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if next, err = next.Logged(s.mem.Log()); err != nil {
		next.Unmap()
		return err
	}
	old := s.mem
	s.remember(next)
	old.Unmap()
	return nil
}

func (s *session) addRegion(m *message) error {
	r, err := m.region()
	if err != nil {
		return err
	}
	if len(m.fds) != 1 {
		return fmt.Errorf("%d files: want 1", len(m.fds))
	}
	slow(&s.tables)
	if s.mem.Len() == guestmem.MaxAreas {
		return fmt.Errorf("more than %d regions", guestmem.MaxAreas)
	}
	a, err := guestmem.Map(r, m.fds[0])
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.mem.With(a)
	if err := next.CheckLog(); err != nil {
		return errors.Join(err, a.Unmap())
	}
	s.remember(next)
	return nil
}

func (s *session) removeRegion(m *message) error {
	r, err := m.region()
	if err != nil {
		return err
	}
	slow(&s.tables)
	s.mu.Lock()
	defer s.mu.Unlock()
	next, area := s.mem.Without(r)
	if area == nil {
		return fmt.Errorf("there is no region at %#x", r.Guest)
	}
	s.remember(next)
	return area.Unmap()
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
