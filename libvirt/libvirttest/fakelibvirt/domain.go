package fakelibvirt

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/libvirthook/declared"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
)

// Codes of errors (virErrorNumber).
const (
	operationInvalid = 55
	operationFailed  = 9
	noDomain         = 42
	noMetadata       = 80
)

type procedureID struct{ program, number uint32 }

// procedure is a call. Without do, it is answered with success.
type procedure struct {
	name string
	do   func(d *Daemon, c *client, m *message, result *encoder) error
}

var procedures = map[procedureID]procedure{
	{remoteProgram, 66}: {"AUTH_LIST", func(_ *Daemon, _ *client, _ *message, result *encoder) error {
		result.numbers(1, 0) // no authentication
		return nil
	}},
	{remoteProgram, 1}:   {"CONNECT_OPEN", nil},
	{remoteProgram, 2}:   {"CONNECT_CLOSE", nil},
	{remoteProgram, 23}:  {"DOMAIN_LOOKUP_BY_NAME", (*Daemon).lookup},
	{remoteProgram, 14}:  {"DOMAIN_GET_XML_DESC", (*Daemon).xml},
	{remoteProgram, 151}: {"DOMAIN_IS_PERSISTENT", (*Daemon).isPersistent},
	{remoteProgram, 212}: {"DOMAIN_GET_STATE", (*Daemon).state},
	{remoteProgram, 160}: {"DOMAIN_ATTACH_DEVICE_FLAGS", (*Daemon).attach},
	{remoteProgram, 174}: {"DOMAIN_UPDATE_DEVICE_FLAGS", (*Daemon).update},
	{remoteProgram, 392}: {"DOMAIN_DETACH_DEVICE_ALIAS", (*Daemon).detach},
	{remoteProgram, 264}: {"DOMAIN_SET_METADATA", (*Daemon).setMetadata},
	{remoteProgram, 265}: {"DOMAIN_GET_METADATA", (*Daemon).metadata},
	{remoteProgram, 316}: {"CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY", (*Daemon).register},
	{remoteProgram, 317}: {"CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY", nil},
	{qemuProgram, 1}:     {"DOMAIN_MONITOR_COMMAND", (*Daemon).command},
	{qemuProgram, 7}:     {"DOMAIN_MONITOR_COMMAND_WITH_FILES", (*Daemon).command},
	{qemuProgram, 4}:     {"CONNECT_DOMAIN_MONITOR_EVENT_REGISTER", (*Daemon).register},
	{qemuProgram, 5}:     {"CONNECT_DOMAIN_MONITOR_EVENT_DEREGISTER", nil},
}

// id is the domain's number, -1 while it does not run.
func (d *Daemon) id() int32 {
	if d.behaviour.Off {
		return -1
	}
	return 7
}

// uuid is the domain's.
func (d *Daemon) uuid() domainxml.UUID { return cmp.Or(d.behaviour.UUID, d.UUID) }

func (d *Daemon) lookup(_ *client, m *message, result *encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if name := m.args.text(); name != d.Name {
		return Refusal{noDomain, fmt.Sprintf("Domain not found: no domain with matching name '%s'", name)}
	}
	result.domain(d.Name, d.uuid(), d.id())
	return nil
}

func (d *Daemon) isPersistent(_ *client, _ *message, result *encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.behaviour.Transient {
		result.numbers(0)
	} else {
		result.numbers(1)
	}
	return nil
}

func (d *Daemon) xml(_ *client, m *message, result *encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.args.domain()
	def, id := d.running, fmt.Sprintf(" id='%d'", d.id())
	if libvirt.XMLFlags(m.args.number())&libvirt.XMLInactive != 0 || d.behaviour.Off {
		def, id = d.stored, ""
	}
	element := def.Metadata
	if inside, ok := strings.CutPrefix(element, "<nics"); ok { // the namespace of which it was stored
		element = "<nics xmlns='" + declared.Namespace + "'" + inside
	}
	result.text(fmt.Sprintf("<domain type='qemu'%s><name>%s</name><uuid>%s</uuid><vcpu>2</vcpu>"+
		"<metadata>%s</metadata><devices>%s</devices></domain>",
		id, d.Name, d.uuid(), element, strings.Join(def.Interfaces, "")))
	return nil
}

// affected is the definition that a call concerns.
func (d *Daemon) affected(flags uint32) (def *Definition, err error) {
	switch {
	case libvirt.Affect(flags) == libvirt.AffectConfig && d.behaviour.Transient:
		return nil, Refusal{operationInvalid, "Requested operation is not valid: transient domains do not have any " +
			"persistent config"}
	case libvirt.Affect(flags) == libvirt.AffectConfig:
		return &d.stored, nil
	case d.behaviour.Off:
		return nil, Refusal{operationInvalid, "Requested operation is not valid: domain is not running"}
	}
	return &d.running, nil
}

func (d *Daemon) metadata(_ *client, m *message, result *encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.args.domain()
	m.args.number() // its type
	m.args.optional()
	def, err := d.affected(m.args.number())
	if err == nil && def.Metadata == "" {
		err = Refusal{noMetadata, "metadata not found: Requested metadata element is not present"}
	}
	if err == nil {
		result.text(def.Metadata)
	}
	return err
}

func (d *Daemon) setMetadata(_ *client, m *message, _ *encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.args.domain()
	m.args.number() // its type
	element := m.args.optional()
	m.args.optional() // the prefix
	m.args.optional()
	def, err := d.affected(m.args.number())
	if err == nil {
		def.Metadata = element
	}
	return err
}

// parse reads an <interface>.
func parse(text string) (domainxml.Interface, error) {
	def, err := domainxml.Parse("<domain><uuid>" + domainxml.UUID{}.String() + "</uuid><devices>" + text +
		"</devices></domain>")
	if err == nil && len(def.Interfaces) != 1 {
		err = errors.New("XML error: want one interface")
	}
	if err != nil {
		return domainxml.Interface{}, err
	}
	return def.Interfaces[0], nil
}

// indexOf finds an interface of a definition; -1 if it does not have it.
func (def Definition) indexOf(is func(domainxml.Interface) bool) int {
	return slices.IndexFunc(def.Interfaces, func(text string) bool {
		x, err := parse(text)
		return err == nil && is(x)
	})
}

// attach adds an interface to a definition, and plugs it into a domain that runs.
func (d *Daemon) attach(_ *client, m *message, _ *encoder) error {
	m.args.domain()
	text := m.args.text()
	x, err := parse(text)
	if err != nil {
		return err
	}
	def, i, err := d.find(m.args.number(), func(other domainxml.Interface) bool { return other.Alias == x.Alias })
	switch {
	case err != nil:
		return err
	case i >= 0:
		return Refusal{operationFailed, "operation failed: device with alias '" + x.Alias + "' already exists"}
	case def == &d.running:
		if err := d.plug(x); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	def.Interfaces = append(def.Interfaces, text)
	return nil
}

// find returns the definition that a call concerns, and where the interface is in it. A domain's
// changes come one after the other: a fake has one client that changes it.
func (d *Daemon) find(flags uint32, is func(domainxml.Interface) bool) (def *Definition, i int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if def, err = d.affected(flags); err != nil {
		return nil, -1, err
	}
	return def, def.indexOf(is), nil
}

// netdev returns the id that libvirt gives to the netdev of a device.
func netdev(alias string) string { return "host" + alias }

// open opens the queues of an interface's tap.
func (d *Daemon) open(x domainxml.Interface) (queues []*os.File, err error) {
	if d.ns == nil {
		f, err := os.Open(os.DevNull)
		return []*os.File{f}, err
	}
	tap, err := tun.Open(d.ns, x.Target, x.Queues > 1, max(x.Queues, 1))
	if err != nil {
		return nil, err
	}
	return tap.Queues(), nil
}

// plug opens an interface's tap, and plugs it into QEMU.
func (d *Daemon) plug(x domainxml.Interface) error {
	queues, err := d.open(x)
	if err != nil {
		return err
	}
	defer fdpass.CloseAll(queues)
	var names []string
	for i, f := range queues {
		names = append(names, fmt.Sprintf("fd-%s-%d", x.Alias, i))
		if err := d.monitor.do("getfd", object{"fdname": names[i]}, f); err != nil {
			return err
		}
	}
	backend := object{"type": "tap", "id": netdev(x.Alias), "fds": strings.Join(names, ":")}
	if err := d.monitor.do("netdev_add", backend, nil); err != nil {
		return err
	}
	err = d.monitor.do("device_add", object{
		"driver": "virtio-net-pci", "id": x.Alias, "netdev": netdev(x.Alias), "mac": x.MAC.String(),
	}, nil)
	if err != nil {
		_ = d.monitor.do("netdev_del", object{"id": netdev(x.Alias)}, nil)
	}
	return err
}

// update replaces the interface with that MAC.
func (d *Daemon) update(_ *client, m *message, _ *encoder) error {
	m.args.domain()
	text := m.args.text()
	x, err := parse(text)
	if err != nil {
		return err
	}
	def, i, err := d.find(m.args.number(),
		func(other domainxml.Interface) bool { return other.MAC.String() == x.MAC.String() })
	switch {
	case err != nil:
		return err
	case i < 0:
		return Refusal{operationFailed, "operation failed: no device matching MAC address " + x.MAC.String() + " found"}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	def.Interfaces[i] = text
	return nil
}

// detach removes an interface from what is stored, or asks the guest to release its device.
func (d *Daemon) detach(_ *client, m *message, _ *encoder) error {
	m.args.domain()
	alias := m.args.text()
	def, i, err := d.find(m.args.number(), func(x domainxml.Interface) bool { return x.Alias == alias })
	switch {
	case err != nil:
		return err
	case i < 0:
		return Refusal{operationFailed, "operation failed: no device found with alias " + alias}
	case def == &d.running:
		return d.monitor.do("device_del", object{"id": alias}, nil)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	def.Interfaces = slices.Delete(def.Interfaces, i, i+1)
	return nil
}

// command passes a command on to QEMU, with its file.
func (d *Daemon) command(_ *client, m *message, result *encoder) error {
	m.args.domain()
	var f *os.File
	if len(m.files) > 0 {
		f = m.files[0]
	}
	reply, err := d.monitor.pass(m.args.text(), f)
	if err == nil {
		result.text(reply)
	}
	return err
}

// register begins a client's registration for events.
func (d *Daemon) register(c *client, m *message, result *encoder) error {
	kind := libvirt.Monitor
	if m.Program == remoteProgram {
		kind = libvirt.Kind(m.args.number())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	number := uint32(len(c.callbacks) + 1)
	c.callbacks[number] = kind
	result.numbers(number)
	return nil
}

// numbers are the procedures of the events.
var numbers = map[libvirt.Kind]uint32{
	libvirt.Lifecycle: 318, libvirt.DeviceRemoved: 333, libvirt.DeviceRemovalFailed: 367, libvirt.Monitor: 6,
}

// send sends an event to the clients that have registered for its kind. rest is what follows the
// domain.
func (d *Daemon) send(kind libvirt.Kind, rest encoder) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := header{remoteProgram, 1, numbers[kind], typeEvent, 0, 0}
	if kind == libvirt.Monitor {
		h.Program = qemuProgram
	}
	for _, c := range d.clients {
		for number, of := range c.callbacks {
			if of == kind {
				var e encoder
				e.numbers(number)
				e.domain(d.Name, d.uuid(), d.id())
				_, _ = c.conn.Write(packet(h, append(e, rest...)))
			}
		}
	}
}

// relay passes an event of QEMU on, and does what libvirt does on it.
func (d *Daemon) relay(name string, data object) {
	details, err := json.Marshal(data)
	if err != nil {
		return
	}
	var e encoder
	e.text(name)
	e.numbers(0, 1, 0, 1) // a second after the epoch, and details
	e.text(string(details))
	d.send(libvirt.Monitor, e)

	alias, _ := data["device"].(string)
	var device encoder
	device.text(alias)
	switch name {
	case "DEVICE_DELETED":
		d.work.Go(func() { d.removed(alias) }) // QEMU's replies come the same way as this event
	case "DEVICE_UNPLUG_GUEST_ERROR":
		d.send(libvirt.DeviceRemovalFailed, device)
	}
}

// removed removes what belongs to a device that has gone.
func (d *Daemon) removed(alias string) {
	_ = d.monitor.do("netdev_del", object{"id": netdev(alias)}, nil)
	d.mu.Lock()
	def := &d.running
	if i := def.indexOf(func(x domainxml.Interface) bool { return x.Alias == alias }); i >= 0 {
		def.Interfaces = slices.Delete(def.Interfaces, i, i+1)
	}
	d.mu.Unlock()
	var device encoder
	device.text(alias)
	d.send(libvirt.DeviceRemoved, device)
}

// end reports that QEMU has ended.
func (d *Daemon) end() {
	d.mu.Lock()
	d.behaviour.Off, d.running = true, Definition{}
	d.mu.Unlock()
	var e encoder
	e.numbers(uint32(libvirt.Stopped), 0)
	d.send(libvirt.Lifecycle, e)
	close(d.ended)
}
