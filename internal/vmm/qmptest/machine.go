package qmptest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// State is what a QEMU has, by id or name, and what it was asked.
type State struct {
	Devices map[string]map[string]any // device_add's arguments
	Netdevs map[string]map[string]any // netdev_add's
	FDs     []string                  // names given by getfd that nothing has taken
	Asked   []string                  // commands, in order
	Down    map[string]bool           // devices and netdevs whose link is down
}

// Behaviour is what a test wants of a QEMU from now on.
type Behaviour struct {
	// Refuse maps commands to the description of a GenericError.
	Refuse map[string]string
	// Ignore are commands that are never answered, nor any later ones of that client.
	Ignore []string
	// Keep has the guest keep its devices: device_del is accepted, and nothing follows.
	Keep bool
	// Object has the guest object to each device_del (DEVICE_UNPLUG_GUEST_ERROR).
	Object bool
	// CPUs is how many virtual processors there are; 0 means 1.
	CPUs int
	// State is the machine's, by query-status; empty means "running".
	State string
	// RxFilter, if not empty, is the JSON object by which each NIC answers query-rx-filter.
	RxFilter string
	// VirtioStatus, if not empty, is the JSON object by which each device answers
	// x-query-virtio-status, which QEMU 7.2 was the first to have.
	VirtioStatus string
}

// machine answers like QEMU 7.2: what it says is in the words of that version, by which clients
// tell some failures apart.
type machine struct {
	name string

	mu        sync.Mutex
	behaviour Behaviour
	devices   map[string]map[string]any
	netdevs   map[string]map[string]any
	backends  map[string][]int // files of netdevs
	fds       map[string]int
	asked     []string
	down      map[string]bool // links of devices and netdevs, which are up else
	asleep    []string        // devices that no guest has released yet, since none runs
}

func newMachine(name string) *machine {
	return &machine{
		name: name, devices: map[string]map[string]any{}, netdevs: map[string]map[string]any{},
		backends: map[string][]int{},
		fds:      map[string]int{},
		down:     map[string]bool{},
	}
}

func (m *machine) state() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return State{
		maps.Clone(m.devices), maps.Clone(m.netdevs), slices.Sorted(maps.Keys(m.fds)), slices.Clone(m.asked),
		maps.Clone(m.down),
	}
}

func (m *machine) behave(b Behaviour) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.behaviour = b
}

// serve is one client's session.
func (m *machine) serve(s *Session) {
	if !s.Negotiate() {
		return
	}
	for r, ok := s.Next(); ok; r, ok = s.Next() {
		lines, answers := m.do(r, s)
		if !answers {
			for _, ok := s.Next(); ok; _, ok = s.Next() {
			}
			return
		}
		s.Say(lines...)
	}
}

// do carries out one command, and returns the reply and the events after it.
func (m *machine) do(r Request, s *Session) (lines []string, answers bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, r.Execute)
	if slices.Contains(m.behaviour.Ignore, r.Execute) {
		return nil, false
	}
	if desc, refused := m.behaviour.Refuse[r.Execute]; refused {
		return []string{r.Refuses("GenericError", desc)}, true
	}
	do, known := commands[r.Execute]
	if !known {
		return []string{r.Refuses("CommandNotFound", fmt.Sprintf("The command %s has not been found", r.Execute))}, true
	}
	value, failure := do(m, r, s)
	if failure != nil {
		return []string{r.Refuses(cmp.Or(failure.class, "GenericError"), failure.desc)}, true
	}
	text, err := json.Marshal(value)
	if err != nil {
		return []string{r.Refuses("GenericError", err.Error())}, true
	}
	lines = []string{r.Returns(string(text))}
	switch r.Execute {
	case "device_del":
		lines = append(lines, m.unplug(r.text("id"))...)
	case "system_reset": // completes what no guest has (acpi_pcihp_reset in hw/acpi/pcihp.c)
		for _, id := range m.asleep {
			lines = append(lines, m.release(id))
		}
		m.asleep = nil
	}
	return lines, true
}

// failure is an error reply; no class means GenericError.
type failure struct{ class, desc string }

func fails(format string, args ...any) *failure { return &failure{desc: fmt.Sprintf(format, args...)} }

func notFound(id string) *failure {
	return &failure{"DeviceNotFound", fmt.Sprintf("Device '%s' not found", id)}
}

// text is an argument that is a string; empty if there is none.
func (r Request) text(name string) string {
	s, _ := r.Arguments[name].(string)
	return s
}

type object = map[string]any

// commands are those that vmnet uses, as a pc machine answers them.
var commands map[string]func(*machine, Request, *Session) (any, *failure)

func init() { // their functions name the map
	commands = map[string]func(*machine, Request, *Session) (any, *failure){
		"getfd":      (*machine).getFD,
		"closefd":    (*machine).closeFD,
		"netdev_add": (*machine).netdevAdd,
		"netdev_del": (*machine).netdevDel,
		"device_add": (*machine).deviceAdd,
		"device_del": (*machine).deviceDel,
		"qom-list":   (*machine).qomList,
		"qom-get": func(_ *machine, r Request, _ *Session) (any, *failure) {
			if r.text("property") == "hotplug-handler" {
				return "/machine/unattached/device[1]", nil
			}
			return nil, fails("Property '%s' not found", r.text("property"))
		},
		"qom-list-types": func(_ *machine, r Request, _ *Session) (any, *failure) {
			return typesOf(r.text("implements")), nil
		},
		"device-list-properties": func(*machine, Request, *Session) (any, *failure) {
			return []object{
				{"name": "romfile", "type": "str"},
				{"name": "rombar", "type": "uint32"},
				{"name": "mrg_rxbuf", "type": "bool"},
			}, nil
		},
		"query-cpus-fast": func(m *machine, _ Request, _ *Session) (any, *failure) {
			return make([]struct{}, max(1, m.behaviour.CPUs)), nil
		},
		"query-status": func(m *machine, _ Request, _ *Session) (any, *failure) {
			return object{"status": cmp.Or(m.behaviour.State, "running")}, nil
		},
		"query-version": func(*machine, Request, *Session) (any, *failure) {
			return object{"qemu": object{"micro": 22, "minor": 2, "major": 7}, "package": ""}, nil
		},
		"query-name": func(m *machine, _ Request, _ *Session) (any, *failure) {
			return object{"name": m.name}, nil
		},
		"query-rx-filter": (*machine).rxFilter,
		"x-query-virtio-status": func(m *machine, _ Request, _ *Session) (any, *failure) {
			status := object{}
			if err := json.Unmarshal([]byte(m.behaviour.VirtioStatus), &status); err != nil {
				return nil, fails("%v", err)
			}
			return status, nil
		},
		"set_link": func(m *machine, r Request, _ *Session) (any, *failure) {
			name := r.text("name")
			if m.devices[name] == nil && m.netdevs[name] == nil {
				return nil, notFound(name)
			}
			m.setLink(name, r.Arguments["up"] == true)
			for id, device := range m.devices { // the peer of a netdev follows it
				if device["netdev"] == name {
					m.setLink(id, r.Arguments["up"] == true)
				}
			}
			return object{}, nil
		},
		"announce-self": nothing,
		"query-migrate": nothing, // there is none
		"set-action":    nothing,
		"system_reset":  nothing,
	}
}

func nothing(*machine, Request, *Session) (any, *failure) { return object{}, nil }

func (m *machine) getFD(r Request, s *Session) (any, *failure) {
	fds := s.Take()
	if len(fds) != 1 {
		closeAll(fds)
		return nil, fails("No file descriptor supplied via SCM_RIGHTS")
	}
	if former, known := m.fds[r.text("fdname")]; known {
		closeAll([]int{former})
	}
	m.fds[r.text("fdname")] = fds[0]
	return object{}, nil
}

func (m *machine) closeFD(r Request, _ *Session) (any, *failure) {
	fd, known := m.fds[r.text("fdname")]
	if !known {
		return nil, fails("File descriptor named '%s' not found", r.text("fdname"))
	}
	delete(m.fds, r.text("fdname"))
	closeAll([]int{fd})
	return object{}, nil
}

func (m *machine) netdevAdd(r Request, _ *Session) (any, *failure) {
	id := r.text("id")
	if _, known := m.netdevs[id]; known {
		return nil, fails("Duplicate ID '%s' for netdev", id)
	}
	var fds []int
	for _, name := range namesOf(r) {
		fd, known := m.fds[name]
		if !known {
			closeAll(fds)
			return nil, fails("File descriptor named '%s' has not been found", name)
		}
		delete(m.fds, name) // it is the netdev's, whatever follows (monitor_get_fd in monitor/fds.c)
		fds = append(fds, fd)
	}
	m.netdevs[id], m.backends[id] = r.Arguments, fds
	return object{}, nil
}

// namesOf are the names of the files that a netdev is to take.
func namesOf(r Request) (names []string) {
	for _, list := range []string{r.text("fds"), r.text("fd"), r.text("vhostfds")} {
		if list != "" {
			names = append(names, strings.Split(list, ":")...)
		}
	}
	if local, ok := r.Arguments["local"].(object); ok {
		name, _ := local["str"].(string)
		names = append(names, name)
	}
	return names
}

func (m *machine) setLink(name string, up bool) {
	if up {
		delete(m.down, name)
	} else {
		m.down[name] = true
	}
}

// netdevDel closes the netdev's files at once, also under its device.
func (m *machine) netdevDel(r Request, _ *Session) (any, *failure) {
	id := r.text("id")
	if _, known := m.netdevs[id]; !known {
		return nil, notFound(id)
	}
	closeAll(m.backends[id])
	delete(m.netdevs, id)
	delete(m.down, id)
	delete(m.backends, id)
	return object{}, nil
}

func (m *machine) deviceAdd(r Request, _ *Session) (any, *failure) {
	id, netdev := r.text("id"), r.text("netdev")
	if _, known := m.devices[id]; known {
		return nil, fails("Duplicate device ID '%s'", id)
	}
	if _, known := m.netdevs[netdev]; !known {
		return nil, fails("Property '%s.netdev' can't find value '%s'", r.text("driver"), netdev)
	}
	m.devices[id] = r.Arguments
	return object{}, nil
}

func (m *machine) deviceDel(r Request, _ *Session) (any, *failure) {
	if _, known := m.devices[r.text("id")]; !known {
		return nil, notFound(r.text("id"))
	}
	return object{}, nil
}

// unplug is what the guest does after device_del, and returns the events of it.
func (m *machine) unplug(id string) []string {
	path := "/machine/peripheral/" + id
	switch {
	case m.behaviour.Keep:
		return nil
	case m.behaviour.Object:
		return []string{event("DEVICE_UNPLUG_GUEST_ERROR", object{"device": id, "path": path})}
	case m.behaviour.State == "prelaunch", m.behaviour.State == "inmigrate":
		m.asleep = append(m.asleep, id)
		return nil
	}
	return []string{m.release(id)}
}

// release removes a device, and returns the event of it.
func (m *machine) release(id string) string {
	delete(m.devices, id)
	delete(m.down, id)
	return event("DEVICE_DELETED", object{"device": id, "path": "/machine/peripheral/" + id})
}

func event(name string, data object) string {
	text, _ := json.Marshal(object{"event": name, "data": data, "timestamp": object{"seconds": 1, "microseconds": 0}})
	return string(text)
}

func (m *machine) qomList(r Request, _ *Session) (any, *failure) {
	list := []object{}
	switch path := r.text("path"); path {
	case "/machine":
		list = append(list, object{"name": "i440fx", "type": "child<i440FX-pcihost>"})
	case "/machine/i440fx":
		list = append(list, object{"name": "pci.0", "type": "child<PCI>"})
	case "/machine/peripheral":
		for _, id := range slices.Sorted(maps.Keys(m.devices)) {
			driver, _ := m.devices[id]["driver"].(string)
			list = append(list, object{"name": id, "type": "child<" + driver + ">"})
		}
	case "/machine/unattached", "/machine/i440fx/pci.0":
	default:
		return nil, &failure{"DeviceNotFound", fmt.Sprintf("Device '%s' not found", path)}
	}
	return list, nil
}

// typesOf are the types that descend from one.
func typesOf(ancestor string) []object {
	types := []object{}
	switch ancestor {
	case "pci-host-bridge":
		types = append(types, object{"name": "i440FX-pcihost"})
	case "pci-device":
		types = append(types, object{"name": "virtio-net-pci"}, object{"name": "e1000"})
	case "virtio-net-pci", "e1000":
		types = append(types, object{"name": ancestor})
	}
	return types
}

func (m *machine) rxFilter(r Request, _ *Session) (any, *failure) {
	id := r.text("name")
	if _, known := m.devices[id]; !known || m.behaviour.RxFilter == "" {
		return nil, fails("invalid net client name: %s", id)
	}
	filter := object{}
	if err := json.Unmarshal([]byte(m.behaviour.RxFilter), &filter); err != nil {
		return nil, fails("%v", err)
	}
	filter["name"] = id
	return []object{filter}, nil
}
