package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmnet/libvirt/domainxml"
)

// monitorEvent sends an event of a guest's QEMU.
func (f *fake) monitorEvent(callback int32, name, details string, seconds int64) {
	f.Helper()
	f.send(header{qemuProgram, 1, domainMonitorEvent, typeMessage, 0, statusOK}, nil, func(e *encoder) {
		e.int32(callback)
		e.domain(guest)
		e.string(name)
		e.buf = append(e.buf, make([]byte, 8)...)
		for i := range 8 {
			e.buf[len(e.buf)-1-i] = byte(seconds >> (8 * i))
		}
		e.uint32(7)
		if e.present(details != ""); details != "" {
			e.string(details)
		}
	})
}

// registered answers the registrations for those names with the numbers 1, 2 and so on.
func (f *fake) registered(names ...string) {
	for i, name := range names {
		m := f.expect(connectDomainMonitorEventRegister)
		d := decoder{buf: m.payload}
		if has := d.present(); !has || d.domain() != guest || d.optionalString() != name ||
			d.uint32() != 0 || d.end() != nil {
			f.Errorf("%q registered: %x", name, m.payload)
		}
		f.reply(m, func(e *encoder) { e.int32(int32(i + 1)) })
	}
}

func TestMonitorEvents(t *testing.T) {
	c, f := dialFake(t)
	lifecycle := subscribe(t, c, f, 1, nil) // with the same number, in another program
	go f.registered("DEVICE_DELETED", "STOP")
	s, err := c.SubscribeMonitor(within(t, 20*time.Second), &guest, 4, "DEVICE_DELETED", "STOP")
	if err != nil {
		t.Fatal(err)
	}
	f.monitorEvent(1, "DEVICE_DELETED", `{"device":"net0"}`, 5)
	f.monitorEvent(2, "STOP", "", -1)
	f.monitorEvent(3, "RESUME", "", 5) // of no subscription
	f.event(1, Started)
	f.ping()
	for _, want := range []Event{
		{Kind: Monitor, Domain: guest, Name: "DEVICE_DELETED", Details: `{"device":"net0"}`, Time: time.Unix(5, 7000)},
		{Kind: Monitor, Domain: guest, Name: "STOP"},
	} {
		if got := <-s.C; got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if got := changes(lifecycle); len(s.C) != 0 || len(got) != 1 {
		t.Errorf("%d monitor events and %v too many", len(s.C), got)
	}

	f.monitorEvent(2, "STOP", strings.Repeat("x", maxEvent), 5)
	for range 10 {
		f.monitorEvent(2, "STOP", "", 5)
	}
	f.ping()
	if len(s.C) != 4 || s.Lost() != 7 {
		t.Errorf("%d wait, %d are lost", len(s.C), s.Lost())
	}
	s.Close()
	numbers := 0
	for range 2 {
		m := f.expect(connectDomainMonitorEventDeregister)
		d := decoder{buf: m.payload}
		numbers += int(d.int32())
		f.reply(m, nil)
	}
	if numbers != 3 {
		t.Errorf("deregistered other numbers, whose sum is %d", numbers)
	}
}

// TestMonitorEventsEarly: events that arrive before libvirt's reply are kept, or counted if they
// are too long.
func TestMonitorEventsEarly(t *testing.T) {
	c, f := dialFake(t)
	go func() {
		m := f.expect(connectDomainMonitorEventRegister)
		d := decoder{buf: m.payload}
		hasDomain, hasName := d.present(), d.present()
		if hasDomain || hasName || d.uint32() != 0 || d.end() != nil {
			f.Errorf("registered: %x", m.payload)
		}
		f.monitorEvent(9, "STOP", "", 5)
		f.monitorEvent(9, "STOP", strings.Repeat("x", maxEvent), 5)
		f.reply(m, func(e *encoder) { e.int32(9) })
	}()
	s, err := c.SubscribeMonitor(within(t, 20*time.Second), nil, 4)
	if err != nil {
		t.Fatal(err)
	}
	if e := <-s.C; e.Name != "STOP" || len(s.C) != 0 || s.Lost() != 1 {
		t.Errorf("%+v, and %d lost", e, s.Lost())
	}
	go func() { f.refuse(f.expect(connectDomainMonitorEventRegister), codeOperationDenied, "read only") }()
	if _, err := c.SubscribeMonitor(within(t, 20*time.Second), nil, 4, "RESUME"); !errors.Is(err, ErrAccessDenied) {
		t.Error(err)
	}
}

// monitorEvents: events reach the connections that subscribed, and do not taint the domain.
func (l *live) monitorEvents(t *testing.T) {
	c, dom := l.dial(t)
	other, _ := l.dial(t)
	ctx := within(t, 60*time.Second)
	one, err := c.SubscribeMonitor(ctx, &dom, 16, "DEVICE_DELETED", "STOP")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	all, err := other.SubscribeMonitor(ctx, nil, 16)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	l.attached(t, c, dom,
		domainxml.Ethernet{Tap: liveTap, MAC: []byte{2, 0, 0, 0, 0, 5}, Alias: domainxml.Alias("net5")},
		func(domainxml.Interface) {})
	deleted := fmt.Sprintf("%q", "ua-vmnet-net5")
	for _, s := range []*Subscription{one, all} {
		e := receive(t, s, func(e Event) bool {
			return e.Name == "DEVICE_DELETED" && strings.Contains(e.Details, deleted)
		})
		if e.Kind != Monitor || e.Domain.UUID != dom.UUID || time.Since(e.Time).Abs() > time.Minute {
			t.Errorf("%+v", e)
		}
	}
	if log := l.daemon.Log(); strings.Contains(log, "custom-monitor") {
		t.Error("the domain is tainted")
	}
	readOnly := dialLive(t, Dialer{URI: l.daemon.URI(), ReadOnly: true})
	if _, err := readOnly.SubscribeMonitor(ctx, &dom, 1, "STOP"); !errors.Is(err, ErrAccessDenied) {
		t.Errorf("read-only: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.SubscribeMonitor(ended, &dom, 1, "RESUME"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
