package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
	"vmnet/internal/procfd"
	"vmnet/libvirt/libvirttest"
)

// liveDomain never runs an instruction. Its machine is the last with PCIe's own hot plug, where
// an unplug needs no guest as long as none has switched the slot on.
const liveDomain = `<domain type='qemu'>
  <name>standing</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-6.0'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='pci' model='pcie-root'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>
`

const (
	liveTap      = "vmtap0"
	liveMultiTap = "vmtap1"
)

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func dialLive(t *testing.T, d Dialer) *Conn {
	t.Helper()
	c, err := d.Dial(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestLiveLibvirtd shares one daemon and one domain: they start slowly.
func TestLiveLibvirtd(t *testing.T) {
	libvirttest.Require(t)
	ns := nstest.New(t)
	daemon := libvirttest.Start(t, ns, "keepalive_interval = 1", "keepalive_count = 1")
	for _, tap := range [][]string{{liveTap}, {liveMultiTap, "multi_queue"}} {
		args := append([]string{"--net=" + ns.Path(), "ip", "tuntap", "add", "mode", "tap"}, tap...)
		if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
			t.Fatalf("make a tap: %v: %s", err, out)
		}
	}
	daemon.Define(liveDomain)
	l := &live{daemon: daemon}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"lookup", l.lookup},
		{"refusals", l.refusals},
		{"read only", l.readOnly},
		{"start", l.start},
		{"monitor", l.monitor},
		{"files", l.files},
		{"NIC", l.nic},
		{"queues", l.queues},
		{"keepalive", l.keepalive},
		{"many at once", l.manyAtOnce},
		{"cancelled", l.cancelled},
		{"restart", l.restart},
		{"destroy", l.destroy},
	} {
		if !t.Run(test.name, test.run) {
			t.Logf("libvirtd said:\n%s", daemon.Log())
			return
		}
	}
}

type live struct {
	daemon *libvirttest.Daemon
}

func (l *live) dial(t *testing.T) (*Conn, Domain) {
	t.Helper()
	c := dialLive(t, Dialer{URI: l.daemon.URI()})
	dom, err := c.LookupByName(within(t, 20*time.Second), "standing")
	if err != nil {
		t.Fatal(err)
	}
	return c, dom
}

func (l *live) lookup(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	if dom.Name != "standing" || dom.UUID.String() != "c7a5fdbd-edaf-9455-926a-d65c16db1809" || dom.ID != -1 {
		t.Errorf("by name: %+v", dom)
	}
	if same, err := c.LookupByUUID(ctx, dom.UUID); err != nil || same != dom {
		t.Errorf("by UUID: %+v, %v", same, err)
	}
	if major, minor, micro, err := c.LibVersion(ctx); err != nil || major < 7 || minor > 99 || micro > 99 {
		t.Errorf("version %d.%d.%d, %v", major, minor, micro, err)
	}
	for flags, want := range map[ListFlags]int{0: 1, ListActive: 0, ListInactive: 1} {
		if all, err := c.ListDomains(ctx, flags); err != nil || len(all) != want || want == 1 && all[0] != dom {
			t.Errorf("list %d: %+v, %v", flags, all, err)
		}
	}
	if state, _, err := c.State(ctx, dom); err != nil || state != StateOff || state.Running() {
		t.Errorf("state %d, %v", state, err)
	}
	if persistent, err := c.IsPersistent(ctx, dom); err != nil || !persistent {
		t.Errorf("persistent %v, %v", persistent, err)
	}
	text, err := c.XML(ctx, dom, XMLInactive)
	if err != nil {
		t.Fatal(err)
	}
	def, err := ParseDefinition(text)
	if err != nil || def.Type != "qemu" || def.Name != "standing" || def.UUID != dom.UUID || def.ID != -1 || len(def.Interfaces) != 0 {
		t.Errorf("definition %+v, %v", def, err)
	}
}

func (l *live) refusals(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	_, err := c.LookupByName(ctx, "nobody")
	var refusal *Error
	if !errors.Is(err, ErrNoDomain) || !errors.As(err, &refusal) || refusal.Level != 2 || !strings.Contains(refusal.Message, "nobody") {
		t.Errorf("lookup: %v", err)
	}
	if err := c.AttachDevice(ctx, dom, liveNIC(t), AffectLive); !errors.Is(err, ErrOperationInvalid) {
		t.Errorf("attach to what does not run: %v", err)
	}
	if err := c.AttachDevice(ctx, dom, "<interface", AffectConfig); err == nil || errors.Is(err, ErrProtocol) {
		t.Errorf("attach of nonsense: %v", err)
	}
	if _, err := c.LookupByName(ctx, "a\x00b"); err == nil || errors.Is(err, ErrNoDomain) {
		t.Errorf("NUL in a name: %v", err)
	}
	if _, err := Dial(ctx, l.daemon.Socket()+"-none"); !errors.Is(err, ErrNoConnection) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := c.LookupByName(ctx, "standing"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func (l *live) readOnly(t *testing.T) {
	ctx := within(t, 20*time.Second)
	for _, d := range []Dialer{{Path: l.daemon.Socket() + "-ro", ReadOnly: true}, {Path: l.daemon.Socket(), ReadOnly: true}} {
		c := dialLive(t, d)
		dom, err := c.LookupByName(ctx, "standing")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AttachDevice(ctx, dom, liveNIC(t), AffectConfig); !errors.Is(err, ErrAccessDenied) {
			t.Errorf("attach over %+v: %v", d, err)
		}
	}
}

// start expects what libvirt says of a start from the subscription made before.
func (l *live) start(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 60*time.Second)
	s, err := c.Subscribe(ctx, nil, 16, Lifecycle)
	if err != nil {
		t.Fatal(err)
	}
	l.daemon.Virsh("start", "--paused", "standing")
	want := Event{Kind: Lifecycle, Domain: dom, Change: Started}
	e := receive(t, s, func(e Event) bool { return e.Change == Started })
	if e.Domain.ID < 1 {
		t.Errorf("id %d", e.Domain.ID)
	}
	want.Domain.ID = e.Domain.ID
	if e != want {
		t.Errorf("got %+v, want %+v", e, want)
	}
	s.Close()
	s.Close()
	if state, _, err := c.State(ctx, dom); err != nil || state != StatePaused || !state.Running() {
		t.Errorf("state %d, %v", state, err)
	}
}

// receive waits for an event that is as wanted.
func receive(t *testing.T, s *Subscription, want func(Event) bool) Event {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case e, open := <-s.C:
			if !open {
				t.Fatalf("the subscription ended: %v", s.conn.Err())
			}
			if want(e) {
				return e
			}
		case <-timeout:
			t.Fatalf("no such event; %d were lost", s.Lost())
		}
	}
}

func (l *live) monitor(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	reply, err := c.MonitorCommand(ctx, dom, `{"execute":"query-name"}`)
	if err != nil || !strings.Contains(reply, `"name":"standing"`) {
		t.Errorf("%s, %v", reply, err)
	}
	reply, received, err := c.MonitorCommandWithFiles(ctx, dom, `{"execute":"query-status"}`)
	if err != nil || len(received) != 0 || !strings.Contains(reply, `"running":false`) {
		t.Errorf("%s, %v, %v", reply, received, err)
	}
	reply, err = c.MonitorCommand(ctx, dom, `{"execute":"no-such-command"}`)
	if err != nil || !strings.Contains(reply, `"error"`) {
		t.Errorf("%s, %v", reply, err)
	}
}

// files passes a pipe's end to QEMU and finds it there.
func (l *live) files(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	before, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	reply, received, err := c.MonitorCommandWithFiles(ctx, dom, `{"execute":"getfd","arguments":{"fdname":"vmnet-test"}}`, w)
	if err != nil || len(received) != 0 || !strings.Contains(reply, `"return":{}`) {
		t.Fatalf("%s, %v, %v", reply, received, err)
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if n := held(l.daemon.QEMU("standing"), link); n != 1 {
		t.Errorf("QEMU holds %s %d times", link, n)
	}
	if n := held(l.daemon.PID(), link); n != 0 {
		t.Errorf("libvirtd holds %s %d times", link, n)
	}
	if flags, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != before&unix.O_NONBLOCK {
		t.Errorf("flags %#x, before %#x, %v", flags, before, err)
	}
	_ = w.Close()
	if _, err := c.MonitorCommand(ctx, dom, `{"execute":"closefd","arguments":{"fdname":"vmnet-test"}}`); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil { // ends only if nobody else holds the other end
		t.Error(err)
	}
	// QEMU takes one file with a command; libvirt refuses more, and the connection goes on.
	if _, _, err := c.MonitorCommandWithFiles(ctx, dom, `{"execute":"query-name"}`, r, r); err == nil {
		t.Error("two files were taken")
	}
	if _, err := c.MonitorCommand(ctx, dom, `{"execute":"query-name"}`); err != nil {
		t.Error(err)
	}
}

func held(pid int, target string) (n int) {
	procfd.Of(pid, func(f procfd.File) {
		if f.Target == target {
			n++
		}
	})
	return n
}

func liveNIC(t *testing.T) string {
	t.Helper()
	text, err := Ethernet{Tap: liveTap, MAC: []byte{2, 0, 0, 0, 0, 1}, MTU: 1400, Alias: "ua-vmnet-net0"}.XML()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (l *live) interfaces(t *testing.T, c *Conn, dom Domain) []Interface {
	t.Helper()
	text, err := c.XML(within(t, 20*time.Second), dom, 0)
	if err != nil {
		t.Fatal(err)
	}
	def, err := ParseDefinition(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if def.ID < 1 {
		t.Errorf("id %d", def.ID)
	}
	return def.Interfaces
}

func (l *live) nic(t *testing.T) {
	c, dom := l.dial(t)
	other, _ := l.dial(t)
	ctx := within(t, 60*time.Second)
	s, err := other.Subscribe(ctx, &dom, 16, DeviceAdded, DeviceRemoved, DeviceRemovalFailed)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	isOurs := func(e Event) bool { return e.Device == "ua-vmnet-net0" }
	for _, detach := range []func() error{
		func() error { return c.DetachDeviceAlias(ctx, dom, "ua-vmnet-net0", AffectLive) },
		func() error { return c.DetachDevice(ctx, dom, liveNIC(t), AffectLive) },
	} {
		if err := c.AttachDevice(ctx, dom, liveNIC(t), AffectLive); err != nil {
			t.Fatal(err)
		}
		if e := receive(t, s, isOurs); e.Kind != DeviceAdded {
			t.Errorf("%+v", e)
		}
		nics := l.interfaces(t, c, dom)
		if len(nics) != 1 || nics[0].Type != "ethernet" || nics[0].Target != liveTap || !nics[0].Unmanaged || nics[0].MTU != 1400 ||
			nics[0].Alias != "ua-vmnet-net0" || nics[0].Model != "virtio" || nics[0].MAC.String() != "02:00:00:00:00:01" || !strings.HasPrefix(nics[0].Address, "0000:0") {
			t.Errorf("%+v", nics)
		}
		if stats, err := c.InterfaceStats(ctx, dom, liveTap); err != nil || stats.RxDropped < 0 {
			t.Errorf("%+v, %v", stats, err)
		}
		if all, err := c.InterfaceAddresses(ctx, dom, FromLeases); err != nil || len(all) != 0 {
			t.Errorf("%+v, %v", all, err)
		}
		if err := c.UpdateDevice(ctx, dom, strings.Replace(liveNIC(t), "<alias", "<link state='down'></link><alias", 1), AffectLive); err != nil {
			t.Errorf("update: %v", err)
		}
		if err := detach(); err != nil {
			t.Fatal(err)
		}
		if e := receive(t, s, isOurs); e.Kind != DeviceRemoved {
			t.Errorf("%+v", e)
		}
		if nics := l.interfaces(t, c, dom); len(nics) != 0 {
			t.Errorf("left: %+v", nics)
		}
	}
	if err := c.DetachDevice(ctx, dom, liveNIC(t), AffectLive); !errors.Is(err, ErrDeviceMissing) {
		t.Errorf("detach again: %v", err)
	}
	var refusal *Error
	if err := c.DetachDeviceAlias(ctx, dom, "ua-vmnet-net0", AffectLive); !errors.As(err, &refusal) {
		t.Errorf("detach again: %v", err)
	}
}

// queues must be as the tap is.
func (l *live) queues(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 60*time.Second)
	for _, test := range []struct {
		tap    string
		queues int
		ok     bool
	}{{liveTap, 2, false}, {liveMultiTap, 1, false}, {liveMultiTap, 2, true}} {
		x, err := Ethernet{Tap: test.tap, MAC: []byte{2, 0, 0, 0, 0, 2}, Queues: test.queues, Alias: "ua-vmnet-net1"}.XML()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AttachDevice(ctx, dom, x, AffectLive); (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		} else {
			t.Logf("%+v: %v", test, err)
		}
	}
	nics := l.interfaces(t, c, dom)
	if len(nics) != 1 || nics[0].Queues != 2 || nics[0].Target != liveMultiTap || nics[0].Alias != "ua-vmnet-net1" {
		t.Errorf("%+v", nics)
	}
	link := "/dev/net/tun"
	if n := held(l.daemon.QEMU("standing"), link); n != 2 {
		t.Errorf("QEMU holds %d queues", n)
	}
}

// keepalive asks for the daemon's pings (VIR_DRV_FEATURE_PROGRAM_KEEPALIVE), one a second here;
// it would hang up after the second one without an answer.
func (l *live) keepalive(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	supportsFeature := procedure{remoteProgram, 60, "CONNECT_SUPPORTS_FEATURE"}
	var supported int32
	err := c.call(ctx, supportsFeature, func(e *encoder) { e.int32(10) }, func(d *decoder) { supported = d.int32() })
	if err != nil || supported != 1 {
		t.Fatalf("supported %d, %v", supported, err)
	}
	select {
	case <-c.Done():
		t.Fatal(c.Err())
	case <-time.After(3500 * time.Millisecond):
	}
	if _, _, err := c.State(ctx, dom); err != nil {
		t.Error(err)
	}
}

func (l *live) manyAtOnce(t *testing.T) {
	c, dom := l.dial(t)
	other, _ := l.dial(t)
	ctx := within(t, 60*time.Second)
	var all sync.WaitGroup
	for i := range 20 {
		from := []*Conn{c, other}[i%2]
		all.Go(func() {
			if _, err := from.XML(ctx, dom, 0); err != nil {
				t.Error(err)
			}
			if _, err := from.LookupByName(ctx, fmt.Sprint("nobody", i)); !errors.Is(err, ErrNoDomain) || !strings.Contains(err.Error(), fmt.Sprint("nobody", i)) {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// cancelled gives up while the daemon stands still, and goes on with the connection.
func (l *live) cancelled(t *testing.T) {
	c, dom := l.dial(t)
	pid := l.daemon.PID()
	signal(t, pid, syscall.SIGSTOP)
	defer signal(t, pid, syscall.SIGCONT)
	if _, _, err := c.State(within(t, 100*time.Millisecond), dom); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("state: %v", err)
	}
	if _, err := c.Subscribe(within(t, 100*time.Millisecond), &dom, 1, Lifecycle); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("subscribe: %v", err)
	}
	if _, err := Dial(within(t, 100*time.Millisecond), l.daemon.Socket()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial: %v", err)
	}
	signal(t, pid, syscall.SIGCONT)
	if state, _, err := c.State(within(t, 20*time.Second), dom); err != nil || state != StatePaused {
		t.Errorf("state %d, %v", state, err)
	}
}

func signal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// restart kills the daemon with a call and a subscription open; the guest lives on.
func (l *live) restart(t *testing.T) {
	c, dom := l.dial(t)
	s, err := c.Subscribe(within(t, 20*time.Second), &dom, 1, Lifecycle)
	if err != nil {
		t.Fatal(err)
	}
	pid, qemu := l.daemon.PID(), l.daemon.QEMU("standing")
	signal(t, pid, syscall.SIGSTOP)
	inFlight := make(chan error)
	go func() {
		_, err := c.XML(within(t, 20*time.Second), dom, 0)
		inFlight <- err
	}()
	time.Sleep(50 * time.Millisecond)
	signal(t, pid, syscall.SIGKILL)
	if err := <-inFlight; !errors.Is(err, ErrNoConnection) || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("in flight: %v", err)
	}
	<-c.Done()
	if _, open := <-s.C; open {
		t.Error("the subscription is open")
	}
	if _, _, err := c.State(t.Context(), dom); !errors.Is(err, ErrNoConnection) {
		t.Errorf("afterwards: %v", err)
	}
	s.Close()
	l.daemon.Await()
	c, _ = l.dial(t)
	if reply, err := c.MonitorCommand(within(t, 20*time.Second), dom, `{"execute":"query-name"}`); err != nil {
		t.Errorf("%s, %v", reply, err)
	}
	if now := l.daemon.QEMU("standing"); now != qemu {
		t.Errorf("the guest was %d and is %d", qemu, now)
	}
}

func (l *live) destroy(t *testing.T) {
	c, dom := l.dial(t)
	other := dialLive(t, Dialer{Path: l.daemon.Socket() + "-ro", ReadOnly: true})
	var subs []*Subscription
	for _, from := range []*Conn{c, other, c} {
		s, err := from.Subscribe(within(t, 20*time.Second), &dom, 16, Lifecycle)
		if err != nil {
			t.Fatal(err)
		}
		subs = append(subs, s)
	}
	subs[2].Close()
	l.daemon.Virsh("destroy", "standing")
	for _, s := range subs[:2] {
		const destroyed = 1 // VIR_DOMAIN_EVENT_STOPPED_DESTROYED
		if e := receive(t, s, func(e Event) bool { return e.Change == Stopped }); e.Detail != destroyed || e.Domain.UUID != dom.UUID {
			t.Errorf("%+v", e)
		}
		s.Close()
	}
	if _, err := c.MonitorCommand(within(t, 20*time.Second), dom, `{"execute":"query-name"}`); !errors.Is(err, ErrOperationInvalid) {
		t.Errorf("monitor of what does not run: %v", err)
	}
	l.daemon.Virsh("undefine", "standing")
	if all, err := c.ListDomains(within(t, 20*time.Second), 0); err != nil || slices.ContainsFunc(all, func(d Domain) bool { return d.Name == "standing" }) {
		t.Errorf("%+v, %v", all, err)
	}
}
