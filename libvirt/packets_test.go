package libvirt

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"vmnet/libvirt/domainxml"
)

// packets has the packets that the client sends at each step of TestPackets: the number of files, a
// slash and the packet in hexadecimal digits with a zero serial number. libvirtd has accepted all
// of them. No program writes the file: a change there is a change of what daemons receive.
//
//go:embed testdata/packets.txt
var packets string

// recorder is a source that keeps the bytes of packets.
type recorder struct {
	socket
	bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.socket.Read(b)
	r.Write(b[:n])
	return n, err
}

// record answers every call, and sends what it received as lines of testdata/packets.txt.
func (f *fake) record(offers authType, got chan<- string) {
	defer close(got)
	callbacks := int32(0)
	for last := uint32(0); ; {
		r := &recorder{socket: socket{f.uc}}
		m, err := readMessage(r)
		if err != nil {
			return
		}
		packet := r.Bytes()
		if m.kind != typeMessage {
			serial := packet[lengthSize+16 : lengthSize+20]
			if now := binary.BigEndian.Uint32(serial); now <= last {
				f.Errorf("serial %d after %d", now, last)
			} else {
				last = now
			}
			clear(serial)
		}
		got <- fmt.Sprintf("%d/%s", len(m.files), hex.EncodeToString(packet))
		for _, file := range m.files {
			_ = file.Close()
		}
		f.answer(m, offers, &callbacks)
	}
}

// answer returns a result in the form of each call; those that are decoded come from a real daemon.
func (f *fake) answer(m message, offers authType, callbacks *int32) {
	is := func(all ...procedure) bool {
		for _, p := range all {
			if m.program == p.program && m.procedure == p.number {
				return true
			}
		}
		return false
	}
	switch {
	case m.kind == typeMessage:
	case is(authList):
		f.reply(m, func(e *encoder) { e.uint32(1); e.uint32(uint32(offers)) })
	case is(authAskPolkit, domainIsPersistent):
		f.reply(m, func(e *encoder) { e.int32(1) })
	case is(connectListAllDomains), is(domainGetState):
		f.reply(m, func(e *encoder) { e.uint32(0); e.uint32(0) })
	case is(domainLookupByName, domainLookupByUUID):
		f.reply(m, func(e *encoder) { e.domain(guest) })
	case is(domainGetXMLDesc, domainGetMetadata, domainMonitorCommand, domainMonitorCommandWithFiles):
		f.reply(m, func(e *encoder) { e.string("text") })
	case is(connectDomainEventCallbackRegisterAny, connectDomainMonitorEventRegister):
		*callbacks++
		f.reply(m, func(e *encoder) { e.int32(*callbacks) })
	default:
		f.reply(m, nil)
	}
}

// TestPackets compares every packet of every call with the recorded ones.
func TestPackets(t *testing.T) {
	want := map[string][]string{}
	for line := range strings.Lines(packets) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || want[name] != nil {
			t.Fatalf("not a line of packets: %s", line)
		}
		want[name] = strings.Fields(rest)
	}
	path, accept := listen(t)
	dial := func(d Dialer, offers authType) (*Conn, *fake, <-chan string) {
		got := make(chan string, 64)
		accepted := make(chan *fake, 1)
		go func() {
			f := accept()
			accepted <- f
			f.record(offers, got)
		}()
		c, err := d.Dial(within(t, 20*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c, <-accepted, got
	}
	check := func(name string, got <-chan string) {
		t.Helper()
		for i, w := range want[name] {
			select {
			case g := <-got:
				if g != w {
					t.Errorf("%s: packet %d\ngot  %s\nwant %s", name, i+1, g, w)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%s: packet %d is missing", name, i+1)
			}
		}
		if len(want[name]) == 0 {
			t.Errorf("no packets of %q; got %s", name, <-got)
		}
		delete(want, name)
	}

	readOnly, _, got := dial(Dialer{Path: path, ReadOnly: true}, authPolkit)
	check("polkit, read-only", got)
	_ = readOnly.Close()
	check("close", got)

	c, f, got := dial(Dialer{URI: "qemu+unix:///session?socket=" + path}, authNone)
	check("session", got)
	for _, step := range steps(t) {
		if err := step.do(within(t, 20*time.Second), c); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		check(step.name, got)
	}
	f.send(header{keepaliveProgram, 1, keepalivePing, typeMessage, 0, statusOK}, nil, nil)
	check("pong", got)
	_ = c.Close()
	check("close of a session", got)
	for name := range want {
		t.Errorf("nothing sends the packets of %q", name)
	}
	for g := range got {
		t.Errorf("sent besides: %s", g)
	}
}

type step struct {
	name string
	do   func(context.Context, *Conn) error
}

// steps are all calls, with strings of every length modulo four, since XDR pads them.
func steps(t *testing.T) []step {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	off := Domain{Name: "größe", UUID: domainxml.UUID{0xff, 15: 0xfe}, ID: -1}
	const query = `{"execute":"query-name"}`
	subscribed := func(s *Subscription, err error) error {
		if err == nil {
			s.Close()
		}
		return err
	}
	return []step{
		{"list", func(ctx context.Context, c *Conn) error {
			_, err := c.ListDomains(ctx, ListActive|ListInactive)
			return err
		}},
		{"lookup by name", func(ctx context.Context, c *Conn) error {
			_, err := c.LookupByName(ctx, "web1")
			return err
		}},
		{"lookup by UUID", func(ctx context.Context, c *Conn) error {
			_, err := c.LookupByUUID(ctx, off.UUID)
			return err
		}},
		{"XML", func(ctx context.Context, c *Conn) error {
			_, err := c.XML(ctx, guest, 0)
			return err
		}},
		{"XML of the next start", func(ctx context.Context, c *Conn) error {
			_, err := c.XML(ctx, off, XMLInactive)
			return err
		}},
		{"persistent", func(ctx context.Context, c *Conn) error {
			_, err := c.IsPersistent(ctx, guest)
			return err
		}},
		{"state", func(ctx context.Context, c *Conn) error {
			_, err := c.State(ctx, guest)
			return err
		}},
		{"attach", func(ctx context.Context, c *Conn) error {
			return c.AttachDevice(ctx, guest, "<x1/>", AffectLive|AffectConfig)
		}},
		{"update", func(ctx context.Context, c *Conn) error {
			return c.UpdateDevice(ctx, guest, "<x1/>", AffectLive|AffectConfig)
		}},
		{"detach", func(ctx context.Context, c *Conn) error {
			return c.DetachDeviceAlias(ctx, off, "ua-xyz", AffectConfig)
		}},
		{"set metadata", func(ctx context.Context, c *Conn) error {
			return c.SetMetadata(ctx, guest, "vmnet", testURI, "<nics/>", AffectConfig)
		}},
		{"remove metadata", func(ctx context.Context, c *Conn) error {
			return c.SetMetadata(ctx, guest, "vmnet", testURI, "", AffectCurrent)
		}},
		{"metadata", func(ctx context.Context, c *Conn) error {
			_, err := c.Metadata(ctx, guest, testURI, AffectLive)
			return err
		}},
		{"monitor command", func(ctx context.Context, c *Conn) error {
			_, err := c.MonitorCommand(ctx, guest, query)
			return err
		}},
		{"monitor command without files", func(ctx context.Context, c *Conn) error {
			_, _, err := c.MonitorCommandWithFiles(ctx, guest, query)
			return err
		}},
		{"monitor command with two files", func(ctx context.Context, c *Conn) error {
			_, _, err := c.MonitorCommandWithFiles(ctx, guest, query, null, null)
			return err
		}},
		{"subscribe to all", func(ctx context.Context, c *Conn) error {
			return subscribed(c.Subscribe(ctx, nil, 1, Lifecycle))
		}},
		{"subscribe to removals", func(ctx context.Context, c *Conn) error {
			return subscribed(c.Subscribe(ctx, &guest, 1, DeviceRemoved))
		}},
		{"subscribe to additions", func(ctx context.Context, c *Conn) error {
			return subscribed(c.Subscribe(ctx, &guest, 1, DeviceAdded))
		}},
		{"subscribe to failed removals", func(ctx context.Context, c *Conn) error {
			return subscribed(c.Subscribe(ctx, &guest, 1, DeviceRemovalFailed))
		}},
		{"subscribe to metadata", func(ctx context.Context, c *Conn) error {
			return subscribed(c.Subscribe(ctx, &guest, 1, MetadataChange))
		}},
		{"subscribe to a monitor", func(ctx context.Context, c *Conn) error {
			return subscribed(c.SubscribeMonitor(ctx, nil, 1))
		}},
		{"subscribe to one event", func(ctx context.Context, c *Conn) error {
			return subscribed(c.SubscribeMonitor(ctx, &guest, 1, "STOP"))
		}},
	}
}

// TestNumbers compares this package's numbers with those in libvirt's headers, written out here,
// and with those of go-libvirt, which are generated from the headers.
func TestNumbers(t *testing.T) {
	for _, n := range []struct {
		ours    any
		libvirt int
		theirs  any
	}{
		{golibvirt.ConnectRo, 1, golibvirt.ConnectRo},
		{ListActive, 1, golibvirt.ConnectListDomainsActive},
		{ListInactive, 2, golibvirt.ConnectListDomainsInactive},
		{XMLInactive, 2, golibvirt.DomainXMLInactive},
		{AffectCurrent, 0, golibvirt.DomainAffectCurrent},
		{AffectLive, 1, golibvirt.DomainAffectLive},
		{AffectConfig, 2, golibvirt.DomainAffectConfig},
		{metadataElement, 2, golibvirt.DomainMetadataElement},
		{golibvirt.DomainPaused, 3, 3},
		{golibvirt.DomainShutoff, 5, 5},
		{golibvirt.DomainCrashed, 6, 6},
		{golibvirt.DomainPausedMigration, 2, 2},
		{golibvirt.DomainPausedStartingUp, 11, 11},
		{authNone, 0, 0},
		{authSASL, 1, 1},
		{authPolkit, 2, 2},
		{Lifecycle, 0, golibvirt.DomainEventIDLifecycle},
		{DeviceRemoved, 15, golibvirt.DomainEventIDDeviceRemoved},
		{DeviceAdded, 19, golibvirt.DomainEventIDDeviceAdded},
		{DeviceRemovalFailed, 22, golibvirt.DomainEventIDDeviceRemovalFailed},
		{MetadataChange, 23, golibvirt.DomainEventIDMetadataChange},
		{Defined, 0, golibvirt.DomainEventDefined},
		{Undefined, 1, golibvirt.DomainEventUndefined},
		{Started, 2, golibvirt.DomainEventStarted},
		{Suspended, 3, golibvirt.DomainEventSuspended},
		{Resumed, 4, golibvirt.DomainEventResumed},
		{Stopped, 5, golibvirt.DomainEventStopped},
		{Shutdown, 6, golibvirt.DomainEventShutdown},
		{PMSuspended, 7, golibvirt.DomainEventPmsuspended},
		{Crashed, 8, golibvirt.DomainEventCrashed},
		{codeNoSupport, 3, golibvirt.ErrNoSupport},
		{codeNoConnect, 5, golibvirt.ErrNoConnect},
		{codeOperationDenied, 29, golibvirt.ErrOperationDenied},
		{codeRPC, 39, golibvirt.ErrRPC},
		{codeNoDomain, 42, golibvirt.ErrNoDomain},
		{codeAuthFailed, 45, golibvirt.ErrAuthFailed},
		{codeOperationInvalid, 55, golibvirt.ErrOperationInvalid},
		{codeConfigUnsupported, 67, golibvirt.ErrConfigUnsupported},
		{codeOperationTimeout, 68, golibvirt.ErrOperationTimeout},
		{codeArgumentUnsupported, 74, golibvirt.ErrArgumentUnsupported},
		{codeAuthCancelled, 79, golibvirt.ErrAuthCancelled},
		{codeNoMetadata, 80, golibvirt.ErrNoDomainMetadata},
		{codeOperationUnsupported, 84, golibvirt.ErrOperationUnsupported},
		{codeAccessDenied, 88, golibvirt.ErrAccessDenied},
		{codeAuthUnavailable, 94, golibvirt.ErrAuthUnavailable},
	} {
		ours, theirs := fmt.Sprintf("%d", n.ours), fmt.Sprintf("%d", n.theirs)
		if want := fmt.Sprint(n.libvirt); ours != want || theirs != want {
			t.Errorf("%T: ours %s, libvirt's %s, go-libvirt's %s", n.ours, ours, want, theirs)
		}
	}
}
