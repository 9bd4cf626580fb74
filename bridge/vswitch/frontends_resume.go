package vswitch

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"sync"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/vhostuser"
)

// later is what a port needs for another switch to go on with the session of its frontend.
type later struct {
	journal *journal // may be nil: see Wire.Keep

	mu      sync.Mutex
	current *os.File           // a copy of the connection that is served; nil for none
	from    *vhostuser.Session // to begin with; nil for none
	conn    *net.UnixConn      // of it, for a port that serves one after the other
}

// serveNext serves the session to begin with, or the next frontend.
func (v *frontends) serveNext() error {
	v.mu.Lock()
	from, conn := v.from, v.conn
	v.from, v.conn = nil, nil
	v.mu.Unlock()
	var err error
	if conn == nil {
		if conn, err = v.next(); err != nil {
			if from != nil {
				err = errors.Join(err, from.Close())
			}
			return err
		}
	}
	v.serves(conn)
	defer v.say() // a store then closes the guest's memory
	defer v.serves(nil)
	if from != nil {
		return v.device.Resume(conn, from)
	}
	return v.device.Serve(conn)
}

// serves keeps a copy of the connection that is served, unless there are no others.
func (v *frontends) serves(conn *net.UnixConn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current != nil {
		_ = v.current.Close()
		v.current = nil
	}
	if conn != nil && !v.once {
		v.current, _ = conn.File() // without it, the frontend connects again
	}
}

// forget closes what nothing has begun with.
func (v *frontends) forget() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	if v.from != nil {
		errs = append(errs, v.from.Close())
	}
	if v.conn != nil {
		errs = append(errs, v.conn.Close())
	}
	v.from, v.conn = nil, nil
	return errors.Join(errs...)
}

// errConnectAgain is why a port cannot be handed over whose frontend has one connection.
var errConnectAgain = errors.New("its frontend would have to connect again")

// leave ends the session, and returns what another switch needs to go on with it.
func (v *frontends) leave() (r Rest, err error) {
	if v.once {
		now, err := v.device.Session()
		if err == nil && now == nil {
			err = errConnectAgain
		}
		if err != nil {
			return r, err
		}
		_ = now.Close()
	}
	v.mu.Lock()
	if v.current != nil {
		r.Conn, err = fdpass.Duplicate(v.current)
	}
	v.mu.Unlock()
	if err != nil {
		return r, err
	}
	s, err := v.device.Suspend()
	if err == nil && s == nil && v.once {
		err = errConnectAgain
	}
	return r.with(s, err)
}

// with adds a session, which may be nil, to a rest. Without one, its connection is of no use.
func (r Rest) with(s *vhostuser.Session, err error) (Rest, error) {
	if err == nil && s != nil {
		r.Files = s.Files
		r.Session, err = json.Marshal(s)
	}
	if err != nil || s == nil {
		err = errors.Join(err, r.Close())
		return Rest{}, err
	}
	return r, nil
}

// Session returns what another switch would need now to go on with the port's frontend: Session,
// Files and Conn of a Rest, or nothing. The caller closes it.
func (p *Port) Session() (r Rest, err error) {
	v := p.wire.frontends
	if v == nil {
		return r, nil
	}
	v.mu.Lock()
	if v.current != nil {
		r.Conn, err = fdpass.Duplicate(v.current)
	}
	v.mu.Unlock()
	if err != nil {
		return r, err
	}
	s, err := v.device.Session()
	if s != nil && r.Conn == nil && !v.once { // it ends
		err = errors.Join(err, s.Close())
		s = nil
	}
	return r.with(s, err)
}

// keep has messages counted in a journal.
func (v *frontends) keep(f *os.File) (err error) {
	if v.journal, err = openJournal(f); err != nil {
		return err
	}
	v.device.Count(&v.journal.head.messages, v.say)
	return nil
}

// say says that the session has changed.
func (v *frontends) say() {
	select {
	case v.port.changed <- struct{}{}:
	default:
	}
}

// resume is Wire.Resume.
func (v *frontends) resume(r Rest) error {
	if r.Session == nil {
		if v.once && r.Killed {
			return errConnectAgain
		}
		return nil
	}
	files, err := duplicates(r.Files)
	if err != nil {
		return err
	}
	s, err := vhostuser.ParseSession(r.Session, files)
	if err != nil {
		return err
	}
	stale := r.Killed && (v.journal == nil || v.journal.head.messages.Load() != s.Messages)
	if !stale && !v.once {
		stale = r.Conn == nil
	}
	if stale { // a frontend that waits for an answer would wait for ever
		err := s.Close()
		if v.once {
			err = errors.Join(errConnectAgain, err)
		}
		return err
	}
	if !v.once {
		any, err := net.FileConn(r.Conn)
		if err != nil {
			return errors.Join(err, s.Close())
		}
		conn, ok := any.(*net.UnixConn)
		if !ok {
			return errors.Join(errors.New("its connection is no Unix socket"), any.Close(), s.Close())
		}
		v.conn = conn
	}
	v.from = s
	return nil
}

func duplicates(files []*os.File) (all []*os.File, err error) {
	for _, f := range files {
		own, err := fdpass.Duplicate(f)
		if err != nil {
			fdpass.CloseAll(all)
			return nil, err
		}
		all = append(all, own)
	}
	return all, nil
}
