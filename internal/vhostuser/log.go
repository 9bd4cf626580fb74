package vhostuser

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"vmnet/internal/vhostuser/guestmem"
)

// While a frontend migrates its guest, it wants to know of each page that is written to the guest's
// memory (VHOST_F_LOG_ALL), so that it can send the page again: frames, by Memory.Write, and the
// used rings, by package virtq.

// isIdle reports whether no ring may be used now: the session ends, or the frontend has asked for a
// log and has not sent it yet. QEMU starts rings before it sends the log. The caller holds mu.
func (d *Device) isIdle() bool {
	return d.ending.Load() || d.features&featureLogAll != 0 && d.mem.Log() == nil
}

// dropLog unmaps the log. The caller holds mu for writing, and no ring is in use, or calls relog.
func (d *Device) dropLog() {
	if d.log == nil {
		return
	}
	if d.mem.Log() != nil {
		without, _ := d.mem.Logged(nil) // which fails only for a log
		d.useMemory(without)
	}
	d.log.Unmap()
	d.log = nil
}

// useMemory replaces the memory by one that has all rings where they are.
func (d *Device) useMemory(next *guestmem.Memory) {
	for i := range d.rings {
		if r := &d.rings[i]; r.ring != nil {
			_ = r.ring.Place(next, r.layout)
		}
	}
	d.mem = next
}

// relog has writes logged if the features ask for it and there is a log. The caller holds mu for
// writing.
func (d *Device) relog() error {
	if d.features&featureLogAll != 0 && d.mem.Log() != d.log {
		next, err := d.mem.Logged(d.log)
		if err != nil {
			return err
		}
		for i := range d.rings { // all of them, or none
			if r := &d.rings[i]; r.ring != nil {
				probe := *r.ring
				if err := probe.Place(next, r.layout); err != nil {
					return fmt.Errorf("ring %d: %w", i, err)
				}
			}
		}
		d.useMemory(next)
	}
	for i := range d.rings {
		d.wake(i)
	}
	return nil
}

// setLogBase takes the log. The reply has no meaning, and a frontend waits for it.
func (s *session) setLogBase(m *message) (reply []byte, err error) {
	if s.protocol&protocolLog == 0 {
		return nil, errors.New("the protocol feature LOG_SHMFD was not negotiated")
	}
	size, offset, err := m.log()
	if err != nil {
		return nil, err
	}
	slow(&s.tables)
	l, err := guestmem.MapLog(size, offset, m.fds[0])
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	former := s.log
	s.log = l
	if err := s.relog(); err != nil {
		s.log = former
		l.Unmap()
		return nil, err
	}
	former.Unmap()
	return word(0), nil
}

// setLogFile takes the file by which a frontend would learn that the log has changed, which none
// uses: it reads the log when it sends the memory.
func (s *session) setLogFile(m *message) error {
	if len(m.fds) != 1 {
		return fmt.Errorf("%d files: want 1", len(m.fds))
	}
	fd := m.fds[0]
	m.fds = nil
	f, err := takeEvent(fd)
	if err != nil {
		return err
	}
	return f.close()
}

// sendRARP announces the guest, which has arrived by a migration.
func (s *session) sendRARP(m *message) error {
	if len(m.body) != 8 {
		return fmt.Errorf("a body of %d bytes: want 8", len(m.body))
	}
	mac := net.HardwareAddr(slices.Clone(m.body[:6]))
	if mac[0]&1 != 0 {
		return fmt.Errorf("address %s is one of a group", mac)
	}
	slow(&s.rarps)
	if s.Announce != nil {
		s.Announce(mac)
	}
	return nil
}
