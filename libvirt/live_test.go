package libvirt

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/libvirt/domainxml"
	"vmnet/libvirt/libvirttest"
)

// liveDomain never runs an instruction. Its machine type is the last one with native PCIe hot plug,
// where an unplug needs no guest as long as no guest has powered the slot on.
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

func within(t testing.TB, d time.Duration) context.Context {
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
	l := &live{ns, daemon}
	l.sh(t, "ip tuntap add mode tap "+liveTap+"; ip tuntap add mode tap multi_queue "+liveMultiTap)
	daemon.Define(liveDomain)
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"lookup", l.lookup},
		{"refusals", l.refusals},
		{"read only", l.readOnly},
		{"metadata", l.metadata},
		{"start", l.start},
		{"monitor events", l.monitorEvents},
		{"monitor", l.monitor},
		{"files", l.files},
		{"NIC", l.nic},
		{"drivers", l.drivers},
		{"macvtap", l.macvtap},
		{"queues", l.queues},
		{"keepalive", l.keepalive},
		{"many at once", l.manyAtOnce},
		{"cancelled", l.cancelled},
		{"subscribe and close", l.subscribeAndClose},
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
	ns     *netns.NS
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
	for flags, want := range map[ListFlags]int{0: 1, ListActive: 0, ListInactive: 1} {
		if all, err := c.ListDomains(ctx, flags); err != nil || len(all) != want || want == 1 && all[0] != dom {
			t.Errorf("list %d: %+v, %v", flags, all, err)
		}
	}
	if persistent, err := c.IsPersistent(ctx, dom); err != nil || !persistent {
		t.Errorf("persistent %v, %v", persistent, err)
	}
	if state, err := c.State(ctx, dom); err != nil || !state.IsOff() || state.IsIncoming() {
		t.Errorf("state %+v, %v", state, err)
	}
	text, err := c.XML(ctx, dom, XMLInactive)
	if err != nil {
		t.Fatal(err)
	}
	def, err := domainxml.Parse(text)
	if err != nil || def.Type != "qemu" || def.Name != "standing" || def.UUID != dom.UUID || def.ID != -1 ||
		len(def.Interfaces) != 0 {
		t.Errorf("definition %+v, %v", def, err)
	}
}

func (l *live) refusals(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	_, err := c.LookupByName(ctx, "nobody")
	var refusal *Error
	if !errors.Is(err, ErrNoDomain) || !errors.As(err, &refusal) || refusal.Level != 2 ||
		!strings.Contains(refusal.Message, "nobody") {
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
	for _, d := range []Dialer{
		{Path: l.daemon.Socket() + "-ro", ReadOnly: true},
		{Path: l.daemon.Socket(), ReadOnly: true},
	} {
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

// start checks the events of a start on a subscription made before.
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
	if all, err := c.ListDomains(ctx, ListActive); err != nil || len(all) != 1 || all[0] != e.Domain {
		t.Errorf("running: %+v, %v", all, err)
	}
}

// receive waits for the wanted event.
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
		if e := receive(t, s, func(e Event) bool {
			return e.Change == Stopped
		}); e.Detail != destroyed || e.Domain.UUID != dom.UUID {
			t.Errorf("%+v", e)
		}
		s.Close()
	}
	if _, err := c.MonitorCommand(within(t, 20*time.Second), dom, `{"execute":"query-name"}`); !errors.Is(err,
		ErrOperationInvalid) {
		t.Errorf("monitor of what does not run: %v", err)
	}
	l.daemon.Virsh("undefine", "standing")
	if all, err := c.ListDomains(within(t, 20*time.Second), 0); err != nil ||
		slices.ContainsFunc(all, func(d Domain) bool {
			return d.Name == "standing"
		}) {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestLiveSession finds a user's libvirtd by the environment.
func TestLiveSession(t *testing.T) {
	libvirttest.Require(t)
	daemon, runtimeDir := libvirttest.StartSession(t, nstest.New(t))
	daemon.Define(strings.Replace(liveDomain, "pc-q35-6.0", "q35", 1))
	t.Setenv("XDG_RUNTIME_DIR", runtimeDir)
	for _, readOnly := range []bool{false, true} {
		c := dialLive(t, Dialer{URI: Session, ReadOnly: readOnly})
		dom, err := c.LookupByName(within(t, 20*time.Second), "standing")
		if err != nil || dom.Name != "standing" {
			t.Errorf("%+v, %v", dom, err)
		}
		if err := c.AttachDevice(within(t, 20*time.Second), dom, liveNIC(t), AffectConfig); errors.Is(err,
			ErrAccessDenied) != readOnly || (err == nil) == readOnly {
			t.Errorf("read-only %v: %v", readOnly, err)
		}
	}
	_, err := Dial(within(t, 20*time.Second), daemon.Socket()) // the session daemon has no driver for the system
	var refusal *Error
	if !errors.As(err, &refusal) {
		t.Error(err)
	}
}
