package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/bridge/vswitch"
)

// ports are a switch's ports and what is known of them beside it.
type ports struct {
	sw *vswitch.Switch

	mu      sync.Mutex // of whoever adds and removes ports, or says where an address is
	byName  map[string]*entry
	waiting sync.WaitGroup
}

// entry is one port. Port has no counters.
type entry struct {
	Port
	in     *vswitch.Port
	holder *holder // nil for none
}

// filesOf is how many files a port is made of.
func filesOf(p *Port) (least, most int) {
	switch p.Kind {
	case Tap:
		least, most = 1, MaxQueues
	case Packet:
		least, most = vswitch.PacketFileCount, vswitch.PacketFileCount
	default:
		least, most = 1, 1
	}
	more := p.holderFiles()
	if p.Link {
		more++
	}
	return least + more, most + more
}

// holderFiles is how many files the port's holder takes: a pidfd, and a lifeline.
func (p *Port) holderFiles() int {
	switch {
	case p.Holder == 0:
		return 0
	case p.Lifeline == 0:
		return 1
	}
	return 2
}

// open makes the wire of a port. It copies the files.
func open(p *Port, files []*os.File) (*vswitch.Wire, error) {
	var w *vswitch.Wire
	var err error
	switch p.Kind {
	case Tap:
		w, err = openTap(p, files)
	case Packet:
		w, err = vswitch.OpenPacketFiles(files)
	default:
		mtu := p.Config.MTU
		if mtu == 0 {
			mtu = 1500 // as the port's is then
		}
		w, err = vswitch.OpenSocket(files[0], mtu)
	}
	if err == nil {
		if err = roomForClients(); err != nil {
			err = errors.Join(err, w.Close())
		}
	}
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return nil, fmt.Errorf("%w: the switch has no room for more ports (ulimit -n, LimitNOFILE= of its unit)", err)
	case errors.Is(err, unix.ENODEV):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w port: %w", bridge.ErrInvalid, err)
	}
	return w, nil
}

func openTap(p *Port, files []*os.File) (*vswitch.Wire, error) {
	queues := len(files)
	if p.Link {
		queues--
	}
	w, err := vswitch.OpenTap(files[:queues]...)
	if err == nil && p.Link {
		if err = w.Follow(files[queues]); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, err
}

// spareFiles are never a port's, so that clients can connect who take ports away.
const spareFiles = 16

func roomForClients() error {
	var err error
	var fds []int
	for range spareFiles {
		fd, openErr := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if openErr != nil {
			err = openErr
			break
		}
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return err
}

// add plugs a port in for a client, with copies of its files.
func (s *ports) add(p Port, files []*os.File) error {
	if err := checkPort(p); err != nil {
		return err
	}
	var h *holder
	if p.Holder != 0 {
		var err error
		if h, err = openHolder(&p, files); err != nil {
			return err
		}
		files = files[p.holderFiles():]
	}
	w, err := open(&p, files)
	if err != nil {
		if h != nil {
			err = errors.Join(err, h.close())
		}
		return err
	}
	return s.plug(p, w, h)
}

func checkPort(p Port) error {
	if err := p.Validate(); err != nil {
		return err
	}
	b, err := json.Marshal(p)
	if err == nil && len(b) > maxPort {
		err = fmt.Errorf("%w port: its settings take %d bytes: want at most %d", bridge.ErrInvalid, len(b), maxPort)
	}
	return err
}

// plug takes over the wire and the holder.
func (s *ports) plug(p Port, w *vswitch.Wire, h *holder) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in, err := s.addPort(p, w)
	if err != nil {
		if h != nil {
			err = errors.Join(err, h.close())
		}
		return err
	}
	e := &entry{Port: p, in: in, holder: h}
	s.byName[p.Name] = e
	if h == nil {
		return nil
	}
	s.waiting.Go(func() {
		if h.wait() {
			s.release(e)
		}
	})
	s.waiting.Go(func() {
		<-in.Ended()
		s.release(e)
	})
	return nil
}

// addPort takes over the wire, unless its port would make a loop.
func (s *ports) addPort(p Port, w *vswitch.Wire) (*vswitch.Port, error) {
	for _, e := range s.byName {
		if err := s.loop(&p, w.Key(), e); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return s.sw.AddPort(p.Name, w, p.Config)
}

// release removes a port whose holder or wire has ended, if nobody has yet.
func (s *ports) release(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[e.Name] == e {
		_ = s.unplug(e) // its files are closed whatever they say
	}
}

// remove unplugs a port for a client.
func (s *ports) remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byName[name]
	if e == nil {
		return vswitch.ErrNoPort
	}
	return s.unplug(e)
}

func (s *ports) unplug(e *entry) error {
	delete(s.byName, e.Name)
	err := s.sw.RemovePort(e.Name)
	if e.holder != nil {
		err = errors.Join(err, e.holder.close())
	}
	return err
}

func (s *ports) label(name, label string) error {
	if err := CheckLabel(label); err != nil {
		return fmt.Errorf("%w port: %w", bridge.ErrInvalid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byName[name]
	if e == nil {
		return vswitch.ErrNoPort
	}
	e.Label = label
	return nil
}

// list is the ports with their counters, in the order of their names.
func (s *ports) list() []Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Port, 0, len(s.byName))
	for _, e := range s.byName {
		p, st := e.Port, e.in.Stats()
		if link, ok := e.in.Link(); ok {
			p.Device = link.Name
		}
		p.Stats = &st
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Port) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// close forgets all ports and their holders, whose switch is closed.
func (s *ports) close() {
	s.mu.Lock()
	for name, e := range s.byName {
		delete(s.byName, name)
		if e.holder != nil {
			_ = e.holder.close()
		}
	}
	s.mu.Unlock()
	s.waiting.Wait()
}

// Addresses. The lock keeps a port's index its own meanwhile.

// fdb does not hold the lock while it reads the whole table: an entry may so be told of a port that has just taken the
// place of another one.
func (s *ports) fdb() []FDBEntry {
	names, filters := s.byIndex(), s.sw.FiltersVLANs()
	var all []FDBEntry
	for _, e := range s.sw.FDB().Dump() {
		if name, ok := names[e.Port]; ok {
			f := FDBEntry{MAC: e.Key.MAC().String(), Port: name, Static: e.Static, Age: int(e.Age.Seconds())}
			if filters {
				f.VLAN = int(e.Key.VLAN())
			}
			all = append(all, f)
		}
	}
	return all
}

func (s *ports) byIndex() map[int]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[int]string{}
	for name, e := range s.byName {
		names[e.in.PortIndex()] = name
	}
	return names
}

// flush forgets what was learned behind a port; behind all, where name is empty.
func (s *ports) flush(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "" && s.byName[name] == nil {
		return vswitch.ErrNoPort
	}
	for n, e := range s.byName {
		if name == "" || n == name {
			s.sw.FDB().FlushPort(e.in.PortIndex(), false)
		}
	}
	return nil
}

func (s *ports) addStatic(f FDBEntry) error {
	mac, err := f.address()
	if err != nil {
		return err
	}
	return s.sw.AddStatic(f.Port, mac, f.VLAN)
}

func (s *ports) removeStatic(f FDBEntry) error {
	mac, err := f.address()
	if err != nil {
		return err
	}
	return s.sw.Forget(mac, f.VLAN)
}
