// Package fakelibvirt is a libvirtd without libvirt for tests: it has one domain, whose QEMU is one
// of package qmptest. It plugs the taps that clients ask for into this QEMU, as libvirt does, so
// that what the host has is real. It needs no root, and refuses what a test wants refused.
package fakelibvirt

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/vmm/qmptest"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
)

// A Refusal is an error of libvirt: its code (virErrorNumber) and message.
type Refusal struct {
	Code    int
	Message string
}

// Behaviour is what a test wants of the daemon from now on.
type Behaviour struct {
	// Refuse maps calls, such as "DOMAIN_ATTACH_DEVICE_FLAGS", to their errors.
	Refuse map[string]Refusal
	// Transient has libvirt store nothing of the domain.
	Transient bool
	// Off says that the domain does not run.
	Off bool
	// Incoming says that its guest is still to come from another host: see Arrive.
	Incoming bool
	// UUID, if it is not zero, is the domain's in place of the one that QEMU says.
	UUID domainxml.UUID
}

// Definition is the domain's definition: what runs, or what is stored.
type Definition struct {
	Interfaces []string // XML
	Metadata   string   // the element of vmnet's namespace
}

// A Daemon is the fake. It runs until the test ends.
type Daemon struct {
	*qmptest.QEMU // the domain's; of its name
	Socket        string
	UUID          domainxml.UUID // as QEMU says

	ns       *netns.NS
	listener *net.UnixListener
	monitor  *monitor
	ended    chan struct{} // QEMU has
	work     sync.WaitGroup

	mu        sync.Mutex
	behaviour Behaviour
	running   Definition
	stored    Definition
	asked     []string
	clients   []*client
}

// client is one connection.
type client struct {
	conn      *net.UnixConn
	callbacks map[uint32]libvirt.Kind // under the Daemon's mutex
}

// daemons numbers the daemons of this process, whose domains have UUIDs of their own.
var daemons atomic.Int32

// Start starts a QEMU for the domain of that name, and a daemon that has it. Taps are those of ns;
// without one, QEMU gets /dev/null in place of a tap.
func Start(tb testing.TB, name string, ns *netns.NS) *Daemon {
	tb.Helper()
	dir, err := os.MkdirTemp("", "virt")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &Daemon{
		Socket: filepath.Join(dir, "sock"), UUID: domainxml.UUID{1, 2, 15: byte(daemons.Add(1))}, ns: ns,
		ended: make(chan struct{}),
	}
	d.QEMU = qmptest.Start(tb, qmptest.Config{
		Name: name,
		Args: []string{
			"-uuid", d.UUID.String(), "-object", "secret,id=masterKey0,format=raw,file=" + dir + "/master-key.aes",
			"-chardev", "socket,id=charmonitor,fd=3,server=on,wait=off",
			"-mon", "chardev=charmonitor,id=monitor,mode=control",
		},
	})
	if d.monitor, err = connect(d.Sockets[0], d.relay, d.end); err != nil {
		tb.Fatal(err)
	}
	if d.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: d.Socket, Net: "unix"}); err != nil {
		tb.Fatal(err)
	}
	d.work.Go(d.accept)
	tb.Cleanup(d.close)
	return d
}

// close ends the daemon, and then its QEMU.
func (d *Daemon) close() {
	d.Disconnect()
	_ = d.listener.Close()
	_ = d.monitor.conn.Close()
	<-d.ended
	d.work.Wait()
}

// Disconnect ends all connections, as a restart of libvirtd does.
func (d *Daemon) Disconnect() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.clients {
		_ = c.conn.Close()
	}
}

// Kill kills the QEMU, and returns once the daemon has noticed and has sent the event of it.
func (d *Daemon) Kill() {
	d.QEMU.Kill()
	<-d.ended
}

// Behave replaces the daemon's behaviour. That of QEMU is the QEMU's own.
func (d *Daemon) Behave(b Behaviour) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.behaviour = b
}

// Definitions returns what libvirt says of the domain that runs, and of what it has stored.
func (d *Daemon) Definitions() (running, stored Definition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running.clone(), d.stored.clone()
}

// Define replaces both definitions.
func (d *Daemon) Define(running, stored Definition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running, d.stored = running.clone(), stored.clone()
}

// Asked returns the calls, in order.
func (d *Daemon) Asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.asked)
}

func (def Definition) clone() Definition {
	return Definition{slices.Clone(def.Interfaces), def.Metadata}
}

func (d *Daemon) accept() {
	for {
		conn, err := d.listener.AcceptUnix()
		if err != nil {
			return
		}
		c := &client{conn, map[uint32]libvirt.Kind{}}
		d.mu.Lock()
		d.clients = append(d.clients, c)
		d.mu.Unlock()
		d.work.Go(func() { d.serve(c) })
	}
}

// serve answers a client's calls in their order.
func (d *Daemon) serve(c *client) {
	defer c.conn.Close()
	for {
		m, err := receive(c.conn)
		if err != nil {
			return
		}
		if m.Kind == typeCall || m.Kind == typeCallWithFiles {
			d.answer(c, m)
		}
		fdpass.CloseAll(m.files)
	}
}

// answer carries out a call, and replies.
func (d *Daemon) answer(c *client, m message) {
	p, known := procedures[procedureID{m.Program, m.Procedure}]
	d.mu.Lock()
	refusal, refused := d.behaviour.Refuse[p.name]
	if known {
		d.asked = append(d.asked, p.name)
	}
	d.mu.Unlock()
	h := m.header
	h.Kind = typeReply
	var result encoder
	switch {
	case !known:
		refusal, refused = Refusal{39, "unknown procedure"}, true // VIR_ERR_RPC
	case !refused && p.do != nil:
		err := p.do(d, c, &m, &result)
		if refused = err != nil; refused && !errors.As(err, &refusal) {
			refusal = Refusal{1, err.Error()} // VIR_ERR_INTERNAL_ERROR
		}
	}
	if refused {
		h.Status, result = 1, refusal.payload()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _ = c.conn.Write(packet(h, result))
}

// Error makes a Refusal an error.
func (r Refusal) Error() string { return r.Message }

// payload is virNetMessageError, without what repeats the message.
func (r Refusal) payload() (e encoder) {
	const domain, level = 10, 2
	e.numbers(uint32(r.Code), domain, 1)
	e.text(r.Message)
	e.numbers(level, 0, 0, 0, 0, 0, 0, 0)
	return e
}
