package server

import (
	"net/netip"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
)

// Addresses. While s.mu is held, a port's index cannot pass to another port.

// fdb lists the FDB. It does not hold the lock while it reads the table, so that an entry may be
// reported with the name of a port that has just taken another one's index.
func (s *ports) fdb() []control.FDBEntry { return s.entries(s.byIndex(), s.sw.FDB().Dump()) }

func (s *ports) entries(ports map[int]*vswitch.Port, known []vswitch.FDBEntry) []control.FDBEntry {
	filters := s.sw.FiltersVLANs()
	remotes := map[int]func(vswitch.Key) (netip.Addr, bool){}
	for i, p := range ports {
		remotes[i] = p.RemoteHosts()
	}
	var all []control.FDBEntry
	for _, e := range known {
		if p, ok := ports[e.Port]; ok {
			f := control.FDBEntry{
				MAC: e.Key.MAC().String(), Port: p.Name(), Static: e.Static, Age: int(e.Age.Seconds()),
			}
			if host, ok := remotes[e.Port](e.Key); ok {
				f.Remote = host.String()
			}
			if filters {
				f.VLAN = int(e.Key.VLAN())
			}
			all = append(all, f)
		}
	}
	return all
}

func (s *ports) byIndex() map[int]*vswitch.Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.indexed()
}

// indexed is byIndex for a caller that holds the lock.
func (s *ports) indexed() map[int]*vswitch.Port {
	ports := map[int]*vswitch.Port{}
	for _, e := range s.byName {
		ports[e.in.PortIndex()] = e.in
	}
	return ports
}

// flush removes the addresses learned behind a port, or behind all ports if name is empty.
func (s *ports) flush(name string) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if name != "" && s.byName[name] == nil {
		return vswitch.ErrNoPort
	}
	for n, e := range s.byName {
		if name == "" || n == name {
			e.in.Flush()
		}
	}
	return nil
}

func (s *ports) addStatic(f control.FDBEntry) error {
	mac, err := f.Address()
	if err == nil {
		err = s.lock()
	}
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	if err := s.sw.AddStatic(f.Port, mac, f.VLAN); err != nil {
		return err
	}
	s.keep()
	return nil
}

// statics returns the static entries of each port, by its name. The caller holds the lock.
func (s *ports) statics() map[string][]control.FDBEntry {
	all := map[string][]control.FDBEntry{}
	for _, f := range s.entries(s.indexed(), s.sw.FDB().Statics()) {
		f.Age, f.Remote = 0, ""
		all[f.Port] = append(all[f.Port], f)
	}
	return all
}

func (s *ports) removeStatic(f control.FDBEntry) error {
	mac, err := f.Address()
	if err == nil {
		err = s.lock()
	}
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	if err := s.sw.Forget(mac, f.VLAN); err != nil {
		return err
	}
	s.keep()
	return nil
}

// announce handles frames as if the port's guest had sent them.
func (s *ports) announce(name string, frames [][]byte) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	return s.sw.Announce(name, frames)
}
