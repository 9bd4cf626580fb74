package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
)

// ports has a switch's ports, with what the switch itself does not know of them.
type ports struct {
	sw *vswitch.Switch

	mu      sync.Mutex // held while ports are added or removed, and addresses changed
	byName  map[string]*entry
	gone    bool // another process has taken them over
	waiting sync.WaitGroup

	keeper   *keeper // may be nil
	resuming bool    // ports of another process are being added, without their addresses yet
}

// errHandedOver is for clients whose request has waited for the hand-over.
var errHandedOver = errors.New("another process has taken the switch over: connect again")

// lock locks the ports for a request, which they serve.
func (s *ports) lock() error {
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return errHandedOver
	}
	return nil
}

// entry is one port. Port has no counters.
type entry struct {
	control.Port
	in     *vswitch.Port
	holder *holder    // may be nil
	files  []*os.File // copies of those with which it was added, to hand it over

	static []control.FDBEntry // those that are stored with it
	shelf  *shelf             // what the store has of it; nil if nothing

	changed bool // its device or session, while the ports are resumed
}

// filesOf returns the least and the most files that a port takes.
func filesOf(p *control.Port) (least, most int) {
	switch p.Kind {
	case control.Tap:
		least, most = 1, control.MaxQueues
	case control.Packet:
		least, most = endpoint.PacketFileCount, endpoint.PacketFileCount+endpoint.FastFileCount
	case control.VXLAN:
		least, most = endpoint.VXLANFileCount, endpoint.VXLANFileCount
	default:
		least, most = 1, 1
	}
	more := holderFiles(p)
	if p.Link {
		more++
	}
	return least + more, most + more
}

// filesHanded is filesOf for a port that another switch hands over, which may have a journal.
func filesHanded(p *control.Port) (least, most int) {
	least, most = filesOf(p)
	if p.Kind == control.Stream || p.Kind == control.VhostUser {
		most++
	}
	return least, most
}

// holderFiles returns the number of files for the port's holder: a pidfd and a lifeline, a pidfd,
// or none.
func holderFiles(p *control.Port) int {
	switch {
	case p.Holder == 0:
		return 0
	case p.Lifeline == 0:
		return 1
	}
	return 2
}

// add adds a port for a client, with copies of its files.
func (s *ports) add(p control.Port, files []*os.File) error {
	if err := checkPort(p); err != nil {
		return err
	}
	own, err := copies(files)
	if err != nil {
		return err
	}
	return s.addResumed(p, own, vswitch.Rest{}, nil)
}

// addResumed is add for a port that another switch has handed over with that rest, or has stored.
// It takes ownership of the files. After an error, the shelf is the caller's.
func (s *ports) addResumed(p control.Port, files []*os.File, rest vswitch.Rest, kept *shelf) error {
	e := &entry{Port: p, files: files, shelf: kept}
	var err error
	if p.Holder != 0 {
		e.holder, err = openHolder(&p, files)
	}
	if err == nil {
		err = s.addJournal(e)
	}
	var w *vswitch.Wire
	if err == nil {
		w, err = openResumed(&p, e.files, rest)
	}
	if err != nil {
		return errors.Join(err, e.close())
	}
	return s.plug(e, w)
}

func openResumed(p *control.Port, files []*os.File, rest vswitch.Rest) (*vswitch.Wire, error) {
	w, err := open(p, files[holderFiles(p):], rest)
	if err == nil {
		if err = w.Resume(rest); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, err
}

// close closes what an entry has besides its port.
func (e *entry) close() (err error) {
	if e.holder != nil {
		err = e.holder.close()
	}
	fdpass.CloseAll(e.files)
	e.files = nil
	return err
}

// copies copies files, or none.
func copies(files []*os.File) ([]*os.File, error) {
	var all []*os.File
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

// maxPort limits a port's settings as JSON, in bytes. It is enough for a trunk of a few hundred
// ranges.
const maxPort = 16 << 10

func checkPort(p control.Port) error {
	if err := p.Validate(); err != nil {
		return err
	}
	b, err := json.Marshal(p)
	if err == nil && len(b) > maxPort {
		err = fmt.Errorf("%w port: its settings take %d bytes: want at most %d", brport.ErrInvalid, len(b), maxPort)
	}
	return err
}

// plug adds a port. It takes ownership of the wire and the entry.
func (s *ports) plug(e *entry, w *vswitch.Wire) error {
	err := s.lock()
	if err != nil {
		return errors.Join(err, w.Close(), e.close())
	}
	defer s.mu.Unlock()
	if err := s.plugIn(e, w); err != nil {
		return errors.Join(err, e.close())
	}
	s.keep(e)
	if h := e.holder; h != nil {
		s.waiting.Go(func() {
			if h.wait() {
				s.release(e, nil)
			}
		})
	}
	return nil
}

// plugIn adds the entry's port to the switch. It takes ownership of the wire.
func (s *ports) plugIn(e *entry, w *vswitch.Wire) error {
	in, err := s.addPort(e.Port, w)
	if err != nil {
		return err
	}
	e.in = in
	s.byName[e.Name] = e
	s.waiting.Go(func() {
		for {
			select {
			case <-in.LinkChanged():
				s.update(e, in)
			case <-in.Ended():
				s.release(e, in)
				return
			}
			select { // who has the device may change it all the time
			case <-time.After(linkPause(e.Kind)):
			case <-in.Ended():
			}
		}
	})
	return nil
}

// linkPause is how long what has changed again at a port's device, or by its frontend, is not
// stored. A frontend's messages come in bursts, and without the last one it connects again.
func linkPause(kind string) time.Duration {
	if kind == control.VhostUser {
		return 50 * time.Millisecond
	}
	return time.Second
}

// update stores what has changed at the port's device.
func (s *ports) update(e *entry, in *vswitch.Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.byName[e.Name] != e || e.in != in:
	case s.resuming: // Begin does it
		e.changed = true
	default:
		s.keep(e)
		s.keepSession(e)
	}
}

// addPort adds a port to the switch unless it would make a loop. It takes ownership of the wire.
func (s *ports) addPort(p control.Port, w *vswitch.Wire) (*vswitch.Port, error) {
	for _, e := range s.byName {
		if err := s.loop(&p, w.Key(), e); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return s.sw.AddPort(p.Name, w, p.Config)
}

// release removes a port whose holder has ended or, if in is not nil, whose wire has, unless it is
// removed already, or has been handed over and taken back. A port without a holder stays, to say
// why it has ended; its files are closed.
func (s *ports) release(e *entry, in *vswitch.Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[e.Name] != e || in != nil && in != e.in {
		return
	}
	if e.holder == nil {
		s.forget(e)
		_ = e.close()
		return
	}
	if in == nil {
		e.in.OtherEnded()
	}
	_ = s.unplug(e) // the files are closed even if an error is returned
}

// remove removes a port for a client.
func (s *ports) remove(name string) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	e := s.byName[name]
	if e == nil {
		return vswitch.ErrNoPort
	}
	return s.unplug(e)
}

func (s *ports) unplug(e *entry) error {
	delete(s.byName, e.Name)
	s.forget(e)
	return errors.Join(s.sw.RemovePort(e.Name), e.close())
}

// set changes the settings of a port for a client, unless that would make a loop.
func (s *ports) set(name string, cfg vport.Config) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	e := s.byName[name]
	if e == nil {
		return vswitch.ErrNoPort
	}
	p := e.Port
	p.Config = cfg
	if err := checkPort(p); err != nil {
		return err
	}
	for _, other := range s.byName {
		if other != e {
			if err := s.loop(&p, e.in.Key(), other); err != nil {
				return err
			}
		}
	}
	if err := s.sw.SetPort(name, cfg); err != nil {
		return err
	}
	e.Port = p
	s.keep(e)
	return nil
}

func (s *ports) label(name, label string) error {
	if err := control.CheckLabel(label); err != nil {
		return fmt.Errorf("%w port: %w", brport.ErrInvalid, err)
	}
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	e := s.byName[name]
	if e == nil {
		return vswitch.ErrNoPort
	}
	e.Label = label
	s.keep(e)
	return nil
}

// list returns the ports with their counters, sorted by name.
func (s *ports) list() []control.Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]control.Port, 0, len(s.byName))
	for _, e := range s.byName {
		p, st := e.Port, e.in.Stats()
		if link, ok := e.in.Link(); ok {
			p.Device = link.Name
		}
		p.Stats = &st
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b control.Port) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// drop drops all ports and closes their holders. The switch is already closed.
func (s *ports) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keeper.stop(wholePatience)
	for name, e := range s.byName {
		delete(s.byName, name)
		_ = e.close()
	}
}
