package qmp

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Port is a free place for a PCI device: device_add's bus and addr.
type Port struct {
	Bus  string // "pci.0", or the id of a port or bridge
	Addr string // hexadecimal slot; empty: QEMU chooses
}

// The cures for a machine without a free port, and for one without PCI.
const (
	portCure  = "start the guest with spare ones: -device pcie-root-port,id=port0,chassis=1 -device pcie-root-port,id=port1,chassis=2 ... (q35, virt), or with ACPI on (pc)"
	noPCICure = "it takes a NIC when it is started (qemu-netup), by USB where it has a USB controller (--model usb-net), or as another machine (-M microvm,pcie=on with a -device pcie-root-port,id=port0)"
)

// pciBus is a bus that takes hot-plugged devices.
type pciBus struct {
	path string // in QOM
	name string
	kind busKind
}

type busKind int

const (
	rootBus    busKind = iota // conventional PCI, of the machine itself
	portBus                   // PCI Express, one slot
	bridgedBus                // conventional PCI, behind a bridge that has an id
)

// pciSlots is how many slots a conventional PCI bus has.
const pciSlots = 32

// FreePort finds where a PCI NIC can be hot-plugged: a root bus that allows it, as on a pc, pseries
// or s390x machine, else an empty PCI Express port that allows it, else a slot behind a PCI bridge.
// Ports and bridges must have an id. If there is no place, the error matches [ErrNoPort] and says
// what to change about the machine. FreePort reads QOM, which unlike query-pci is right before the
// firmware has numbered the buses.
//
// Through a [Relay] it returns the last place in that order instead of the first: the owner of the
// monitor knows nothing of the device, and libvirt would put its own next one into the first.
func (c *Conn) FreePort(ctx context.Context) (Port, error) {
	machine, err := c.machine(ctx)
	if err != nil {
		return Port{}, fmt.Errorf("find a free PCI port: %w", err)
	}
	return c.freePort(ctx, machine)
}

func (c *Conn) freePort(ctx context.Context, machine objects) (Port, error) {
	s := portSearch{c: c, machine: machine}
	_, s.backwards = c.way.(*relayed)
	type places func(context.Context) (Port, bool, error)
	for _, under := range []places{s.underHosts, s.underDevices, s.underOtherHosts} {
		port, free, err := under(ctx)
		if err != nil {
			return Port{}, fmt.Errorf("find a free PCI port: %w", err)
		}
		if free {
			return port, nil
		}
	}
	if _, err := c.CPUs(ctx); err != nil { // with -preconfig there is no machine to look into
		return Port{}, fmt.Errorf("find a free PCI port: %w", err)
	}
	switch {
	case s.hosts == 0:
		return Port{}, fmt.Errorf("%w: this machine has no PCI bus; %s", ErrNoPort, noPCICure)
	case s.buses == 0:
		return Port{}, fmt.Errorf("%w: no bus of this machine takes devices while it runs; %s", ErrNoPort, portCure)
	default:
		return Port{}, fmt.Errorf("%w: all %d are taken; %s", ErrNoPort, s.buses, portCure)
	}
}

// machinePath is the machine's path in QOM.
const machinePath = "/machine"

// machine lists what is in the machine itself.
func (c *Conn) machine(ctx context.Context) (objects, error) { return c.qomList(ctx, machinePath) }

// isHostBridge reports whether a type is by its name a bridge from the machine to a PCI bus.
var isHostBridge = named("pcihost", "pci-host", "pcie-host")

// named returns a function that matches types whose names have one of the parts.
func named(parts ...string) func(kind string) bool {
	return func(kind string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(kind, p) })
	}
}

// children returns the names of those objects whose types match, sorted. It leaves out links.
func (o objects) children(match func(kind string) bool) (found []string) {
	for _, name := range slices.Sorted(maps.Keys(o)) {
		kind, child := strings.CutPrefix(o[name], "child<")
		if child && match(strings.TrimSuffix(kind, ">")) {
			found = append(found, name)
		}
	}
	return found
}

// portSearch asks QEMU no more than it needs: each query is a round trip.
type portSearch struct {
	c         *Conn
	machine   objects // what is in machinePath
	backwards bool    // the last place comes first
	hosts     int     // bridges from the machine to a PCI bus
	buses     int     // full ones that take devices
}

// underHosts looks at the machine's own buses.
func (s *portSearch) underHosts(ctx context.Context) (Port, bool, error) {
	return s.underHostsOf(ctx, isHostBridge)
}

// underOtherHosts looks at those whose bridge has another name, for which it asks QEMU.
func (s *portSearch) underOtherHosts(ctx context.Context) (Port, bool, error) {
	types, err := s.c.typesOf(ctx, "pci-host-bridge")
	if err != nil {
		return Port{}, false, err
	}
	return s.underHostsOf(ctx, func(kind string) bool { return types[kind] && !isHostBridge(kind) })
}

// underHostsOf looks at the bridges whose type matches: those of the board, where QEMU keeps
// bridges without a name, and further ones of the command line (spapr-pci-host-bridge).
func (s *portSearch) underHostsOf(ctx context.Context, match func(kind string) bool) (Port, bool, error) {
	paths := []string{machinePath, machinePath + "/unattached", peripheral}
	if s.backwards {
		slices.Reverse(paths)
	}
	for _, path := range paths {
		hosts, err := s.children(ctx, path, match)
		if err != nil {
			return Port{}, false, err
		}
		s.hosts += len(hosts)
		if port, free, err := s.under(ctx, hosts, true); free || err != nil {
			return port, free, err
		}
	}
	return Port{}, false, nil
}

// underDevices looks at ports before bridges. Other devices have no bus.
func (s *portSearch) underDevices(ctx context.Context) (Port, bool, error) {
	for _, parts := range [][]string{{"root-port", "downstream", "ioh3420"}, {"bridge"}} {
		parents, err := s.children(ctx, peripheral, named(parts...))
		if err != nil {
			return Port{}, false, err
		}
		if port, free, err := s.under(ctx, parents, false); free || err != nil {
			return port, free, err
		}
	}
	return Port{}, false, nil
}

// children lists the paths of the children of a QOM object whose types match.
func (s *portSearch) children(ctx context.Context, path string, match func(kind string) bool) ([]string, error) {
	all := s.machine
	if path != machinePath {
		var err error
		if all, err = s.c.qomList(ctx, path); err != nil {
			return nil, err
		}
	}
	found := all.children(match)
	for i, name := range found {
		found[i] = path + "/" + name
	}
	return found, nil
}

// under finds the first free place on the buses of these devices.
func (s *portSearch) under(ctx context.Context, parents []string, host bool) (Port, bool, error) {
	if s.backwards {
		slices.Reverse(parents)
	}
	for _, parent := range parents {
		buses, err := s.c.busesOf(ctx, parent, host)
		if err != nil {
			return Port{}, false, err
		}
		for _, bus := range buses {
			if port, free, err := s.freeSlot(ctx, bus); free || err != nil {
				return port, free, err
			}
			s.buses++
		}
	}
	return Port{}, false, nil
}

// busesOf lists a device's PCI buses that take hot-plugged devices: those with a
// hotplug-handler, which is how QEMU itself decides.
func (c *Conn) busesOf(ctx context.Context, parent string, host bool) (buses []pciBus, err error) {
	properties, err := c.qomList(ctx, parent)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		bus := pciBus{path: parent + "/" + name, name: name}
		switch kind := properties[name]; {
		case kind == "child<PCI>" && host:
			bus.kind = rootBus
		case kind == "child<PCI>":
			bus.kind = bridgedBus
		case kind == "child<PCIE>" && !host && properties["hotplug"] != "":
			// a port; a switch's inner bus has no such property
			bus.kind = portBus
		default:
			continue
		}
		takes, err := c.takesHotplug(ctx, parent, bus)
		if err != nil {
			return nil, err
		}
		if takes {
			buses = append(buses, bus)
		}
	}
	return buses, nil
}

func (c *Conn) takesHotplug(ctx context.Context, parent string, bus pciBus) (bool, error) {
	var handler string
	if err := c.qomGet(ctx, bus.path, "hotplug-handler", &handler); err != nil || handler == "" {
		return false, err
	}
	allowed := true
	if bus.kind == portBus {
		if err := c.qomGet(ctx, parent, "hotplug", &allowed); err != nil {
			return false, err
		}
	}
	return allowed, nil
}

// freeSlot finds a slot that none of the bus's devices is in.
func (s *portSearch) freeSlot(ctx context.Context, bus pciBus) (Port, bool, error) {
	properties, err := s.c.qomList(ctx, bus.path)
	if err != nil {
		return Port{}, false, err
	}
	var devices []string
	for name, kind := range properties {
		if strings.HasPrefix(name, "child[") && strings.HasPrefix(kind, "link<") {
			devices = append(devices, name)
		}
	}
	switch {
	case bus.kind == portBus:
		return Port{Bus: bus.name}, len(devices) == 0, nil
	case bus.kind == rootBus && !s.backwards && len(devices) < pciSlots: // however they share slots, one is free
		return Port{Bus: bus.name}, true, nil
	}
	var taken [pciSlots]bool
	taken[0] = bus.kind == bridgedBus // the hot-plug controller's own, if the bridge has one
	for _, name := range devices {
		slot, err := s.c.slotOf(ctx, bus.path, name)
		if err != nil {
			return Port{}, false, err
		}
		taken[slot] = true
	}
	slot := slices.Index(taken[:], false)
	switch {
	case slot < 0:
		return Port{}, false, nil
	case s.backwards:
		for slot = pciSlots - 1; taken[slot]; slot-- {
		}
	case bus.kind == rootBus:
		return Port{Bus: bus.name}, true, nil
	}
	return Port{Bus: bus.name, Addr: strconv.FormatInt(int64(slot), 16)}, true, nil
}

// slotOf reads a bus's link to a device and the device's addr: slot*8 + function.
func (c *Conn) slotOf(ctx context.Context, bus, link string) (int, error) {
	var device string
	if err := c.qomGet(ctx, bus, link, &device); err != nil {
		return 0, err
	}
	var devfn int
	if err := c.qomGet(ctx, device, "addr", &devfn); err != nil {
		return 0, err
	}
	return devfn >> 3 & (pciSlots - 1), nil
}
