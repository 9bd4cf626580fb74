package vhostuser

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/vhostuser/guestmem"
	"vmnet/internal/vhostuser/virtq"
)

// A Session is what a frontend has set up, by which another device can go on with its connection:
// the frontend and its guest notice nothing. The rings themselves say how far the device has come.
type Session struct {
	Features uint64 `json:"features"`
	Protocol uint64 `json:"protocol"`
	Owned    bool   `json:"owned"`
	MTU      int64  `json:"mtu,omitempty"` // bytes

	Areas []SessionArea `json:"areas"`
	Rings []SessionRing `json:"rings"`

	// Messages counts those whose effects the session has.
	Messages uint64 `json:"messages"`

	Files []*os.File `json:"-"` // owned by the session
}

// A SessionArea is a part of the guest's memory. File is an index of Session.Files.
type SessionArea struct {
	guestmem.Region
	File int `json:"file"`
}

// A SessionRing is a ring. Kick and Call are indexes of Session.Files, or -1.
type SessionRing struct {
	Layout   virtq.Layout `json:"layout"`
	Base     uint16       `json:"base"`
	Enabled  bool         `json:"enabled,omitempty"`
	Disabled bool         `json:"disabled,omitempty"`
	Kick     int          `json:"kick"`
	Call     int          `json:"call"`
}

// Close closes the files.
func (s *Session) Close() error {
	fdpass.CloseAll(s.Files)
	s.Files = nil
	return nil
}

// ParseSession parses the JSON of a Session and gives it ownership of its files. On error it closes
// them.
func ParseSession(text []byte, files []*os.File) (*Session, error) {
	s := &Session{Files: files}
	err := json.Unmarshal(text, s)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("session of a frontend: %w", err), s.Close())
	}
	return s, nil
}

func (s *Session) check() error {
	if len(s.Areas) > guestmem.MaxAreas || len(s.Rings) > 2*MaxPairs {
		return fmt.Errorf("%d areas and %d rings", len(s.Areas), len(s.Rings))
	}
	for _, a := range s.Areas {
		if a.File < 0 || a.File >= len(s.Files) {
			return fmt.Errorf("file %d of %d", a.File, len(s.Files))
		}
	}
	for _, r := range s.Rings {
		if r.Kick < -1 || r.Call < -1 || max(r.Kick, r.Call) >= len(s.Files) {
			return fmt.Errorf("files %d and %d of %d", r.Kick, r.Call, len(s.Files))
		}
	}
	return nil
}

// keptArea is a part of the memory with its file, which the device keeps for a Session.
type keptArea struct {
	guestmem.Region
	file *os.File
}

func newArea(r guestmem.Region, fd int) (keptArea, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return keptArea{}, err
	}
	return keptArea{r, os.NewFile(uintptr(own), "guest's memory")}, nil
}

func closeAreas(all []keptArea) {
	for _, a := range all {
		_ = a.file.Close()
	}
}

// Count has messages counted in c, before each is read: a process that goes on with a Session after
// this one was killed can know that nothing has come since. Call it before Serve. Settled is called
// by Serve's goroutine when a message was handled; it must not wait. It may be nil.
func (d *Device) Count(c *atomic.Uint64, settled func()) { d.counter, d.settled = c, settled }

// Session returns the current session; nil if there is none that another device could go on with.
// The caller closes it.
func (d *Device) Session() (*Session, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.snapshot()
}

// snapshot is Session for a caller that holds mu.
func (d *Device) snapshot() (s *Session, err error) {
	if d.conn == nil || d.live == nil || !d.live.owned || d.log != nil || d.features&featureLogAll != 0 {
		return nil, nil // a migration ends soon
	}
	s = &Session{
		Features: d.features, Protocol: d.live.protocol, Owned: true, MTU: d.mtu.Load(), Messages: d.handled.Load(),
	}
	defer func() {
		if err != nil {
			_ = s.Close()
			s = nil
		}
	}()
	add := func(f *os.File, err error) (int, error) {
		if err != nil {
			return -1, err
		}
		s.Files = append(s.Files, f)
		return len(s.Files) - 1, nil
	}
	inodes := map[[2]uint64]int{} // one file may have several areas
	for _, a := range d.areas {
		var st unix.Stat_t
		if err := fdpass.Control(a.file, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
			return s, err
		}
		key := [2]uint64{st.Dev, st.Ino}
		at, ok := inodes[key]
		if !ok {
			if at, err = add(fdpass.Duplicate(a.file)); err != nil {
				return s, err
			}
			inodes[key] = at
		}
		s.Areas = append(s.Areas, SessionArea{a.Region, at})
	}
	for i := range d.rings {
		r := &d.rings[i]
		ring := SessionRing{
			Layout: r.layout, Base: r.base, Enabled: r.enabled, Disabled: r.disabled, Kick: -1, Call: -1,
		}
		if r.kick != nil {
			if ring.Kick, err = add(r.kick.duplicate()); err != nil {
				return s, err
			}
		}
		if call := r.call.Load(); call != nil {
			if ring.Call, err = add(call.duplicate()); err != nil {
				return s, err
			}
		}
		s.Rings = append(s.Rings, ring)
	}
	return s, nil
}

// duplicate returns a copy of the event's file.
func (e *event) duplicate() (*os.File, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, os.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "eventfd"), nil
}

// errSuspended ends a session between two messages, for another device to go on with it.
var errSuspended = fmt.Errorf("the session is handed over: %w", fs.ErrClosed)

// Suspend ends the current session, but not its connection, of which the caller needs another copy.
// No frame is in flight when it returns. The session is nil if there is none, or none that another
// device could go on with, which then ends as by Close.
func (d *Device) Suspend() (*Session, error) {
	d.mu.Lock()
	conn := d.conn
	if conn == nil || d.live == nil || d.closed {
		d.mu.Unlock()
		return nil, nil
	}
	done := make(chan suspended, 1)
	d.suspend = done
	d.mu.Unlock()
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	got := <-done
	return got.session, got.err
}

type suspended struct {
	session *Session
	err     error
}

// handOver answers a Suspend, before the session is reset. err is why it has ended.
func (d *Device) handOver(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.suspend != nil {
		var got suspended
		if errors.Is(err, errSuspended) {
			got.session, got.err = d.snapshot()
		}
		d.suspend <- got
		d.suspend = nil
	}
	d.live = nil // for no further Suspend
}

// Resume is Serve for a session that another device had with the frontend. It closes the session.
func (d *Device) Resume(conn *net.UnixConn, from *Session) error {
	defer from.Close()
	s := &session{Device: d, conn: conn, owned: from.Owned, protocol: from.Protocol}
	if err := d.begin(s); err != nil {
		return errors.Join(err, conn.Close())
	}
	return d.run(s, s.resume(from))
}

// resume sets up what the frontend has set up.
func (s *session) resume(from *Session) error {
	if from.Features&^s.offers() != 0 || from.Protocol&^offeredProtocol != 0 || len(from.Rings) != len(s.rings) {
		return errors.New("this device does not offer what the session has")
	}
	mem := guestmem.New()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range from.Areas {
		err := fdpass.Control(from.Files[a.File], func(fd int) error {
			mapped, err := guestmem.Map(a.Region, fd)
			if err != nil {
				return err
			}
			mem = mem.With(mapped)
			kept, err := newArea(a.Region, fd)
			if err == nil {
				s.areas = append(s.areas, kept)
			}
			return err
		})
		if err != nil {
			mem.Unmap()
			return err
		}
	}
	old := s.mem
	s.mem, s.features = mem, from.Features
	old.Unmap()
	s.mtu.Store(from.MTU)
	for i, r := range from.Rings {
		if err := s.resumeRing(i, r, from.Files); err != nil {
			return fmt.Errorf("ring %d: %w", i, err)
		}
	}
	s.handled.Store(from.Messages)
	if s.counter != nil {
		s.counter.Store(from.Messages)
	}
	return nil
}

func (s *session) resumeRing(index int, from SessionRing, files []*os.File) error {
	r := &s.rings[index]
	r.layout, r.base, r.enabled, r.disabled = from.Layout, from.Base, from.Enabled, from.Disabled
	if from.Call >= 0 {
		e, err := eventOf(files[from.Call])
		if err != nil {
			return err
		}
		if err := r.setCall(e); err != nil {
			return err
		}
	}
	if from.Kick < 0 {
		return nil
	}
	var err error
	if r.kick, err = eventOf(files[from.Kick]); err != nil {
		return err
	}
	if err := r.start(s.mem, s.features); err != nil {
		return err
	}
	r.interrupt() // the last one may not have been sent
	s.wake(index)
	return nil
}

// eventOf takes a copy of an eventfd.
func eventOf(f *os.File) (*event, error) {
	fd, err := fdpass.DuplicateFD(f)
	if err != nil {
		return nil, err
	}
	return takeEvent(fd)
}
