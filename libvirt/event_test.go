package libvirt

import (
	"context"
	"errors"
	"testing"
	"time"
)

// subscribe subscribes at a fake that first sends the events and then answers with that callback
// number.
func subscribe(t *testing.T, c *Conn, f *fake, callback int32, early func()) *Subscription {
	t.Helper()
	type result struct {
		s   *Subscription
		err error
	}
	done := make(chan result)
	go func() {
		s, err := c.Subscribe(within(t, 20*time.Second), &guest, 4, Lifecycle)
		done <- result{s, err}
	}()
	m := f.expect(connectDomainEventCallbackRegisterAny)
	if early != nil {
		early()
	}
	f.reply(m, func(e *encoder) { e.int32(callback) })
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.s
}

// changes returns the changes that have been delivered so far.
func changes(s *Subscription) (all []Change) {
	for {
		select {
		case e, open := <-s.C:
			if !open {
				return all
			}
			all = append(all, e.Change)
		default:
			return all
		}
	}
}

func TestEventsBeforeTheReply(t *testing.T) {
	c, f := dialFake(t)
	s := subscribe(t, c, f, 5, func() {
		f.event(5, Started)
		f.event(6, Crashed) // of another subscription
		f.event(5, Suspended)
	})
	f.event(5, Resumed)
	f.event(6, Crashed)
	f.ping()
	got := changes(s)
	if len(got) != 3 || got[0] != Started || got[1] != Suspended || got[2] != Resumed || s.Lost() != 0 {
		t.Errorf("%v, lost %d", got, s.Lost())
	}
}

// TestEventFlood: neither a sleeping subscriber nor early events block the connection.
func TestEventFlood(t *testing.T) {
	c, f := dialFake(t)
	s := subscribe(t, c, f, 5, func() {
		for range maxEarly + 10 {
			f.event(5, Started)
		}
	})
	for range 100 {
		f.event(5, Stopped)
	}
	f.ping()
	if got := changes(s); len(got) != 4 || s.Lost() != maxEarly+10-4+100 {
		t.Errorf("%v, lost %d", got, s.Lost())
	}
	f.event(5, Crashed)
	f.ping()
	if got := changes(s); len(got) != 1 || got[0] != Crashed {
		t.Errorf("afterwards %v", got)
	}
}

// TestSubscriptionsShare: libvirt registers for a topic once, and ends it with the last subscriber.
func TestSubscriptionsShare(t *testing.T) {
	c, f := dialFake(t)
	first := subscribe(t, c, f, 5, nil)
	second, err := c.Subscribe(t.Context(), &guest, 4, Lifecycle, Lifecycle)
	if err != nil {
		t.Fatal(err)
	}
	f.event(5, Started)
	f.ping()
	first.Close()
	f.event(5, Stopped)
	f.ping()
	if got := changes(first); len(got) != 1 {
		t.Errorf("first: %v", got)
	}
	if got := changes(second); len(got) != 2 {
		t.Errorf("second: %v", got)
	}
	second.Close()
	m := f.expect(connectDomainEventCallbackDeregisterAny)
	if d := (decoder{buf: m.payload}); d.int32() != 5 || d.end() != nil {
		t.Errorf("deregistered %v", m.payload)
	}
	f.event(5, Crashed) // in flight when the subscriber left
	f.reply(m, nil)
	f.ping()
	subscribe(t, c, f, 6, nil).Close()
	f.reply(f.expect(connectDomainEventCallbackDeregisterAny), nil)
}

// TestSubscriberLeaves: if a subscriber leaves before libvirt has answered, the reply ends the
// registration.
func TestSubscriberLeaves(t *testing.T) {
	c, f := dialFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := c.Subscribe(ctx, nil, 1, Lifecycle)
		left <- err
	}()
	m := f.expect(connectDomainEventCallbackRegisterAny)
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := c.Subscribe(within(t, 20*time.Millisecond), nil, 1, Lifecycle); !errors.Is(err,
		context.DeadlineExceeded) {
		t.Errorf("before the reply: %v", err)
	}
	f.reply(m, func(e *encoder) { e.int32(9) })
	f.reply(f.expect(connectDomainEventCallbackDeregisterAny), nil)
	f.ping()
}

func TestSubscribeRefused(t *testing.T) {
	c, f := dialFake(t)
	go func() {
		f.reply(f.expect(connectDomainEventCallbackRegisterAny), func(e *encoder) { e.int32(1) })
		f.refuse(f.expect(connectDomainEventCallbackRegisterAny), codeNoSupport, "no such event")
	}()
	ctx := within(t, 20*time.Second)
	if _, err := c.Subscribe(ctx, nil, 1, Lifecycle, DeviceRemoved); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	f.reply(f.expect(connectDomainEventCallbackDeregisterAny), nil) // of the first kind
	go func() {
		f.reply(f.expect(connectDomainEventCallbackRegisterAny), nil) // no number
	}()
	if _, err := c.Subscribe(ctx, nil, 1, DeviceAdded); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
	if _, err := c.Subscribe(ctx, nil, 1); err == nil {
		t.Error("subscribed to nothing")
	}
}

func TestSubscriptionEndsWithItsConnection(t *testing.T) {
	c, f := dialFake(t)
	s := subscribe(t, c, f, 5, nil)
	f.event(5, Stopped)
	_ = f.uc.Close()
	<-c.Done()
	for e := range s.C {
		if e.Change != Stopped || e.Domain != guest || e.Kind != Lifecycle {
			t.Errorf("%+v", e)
		}
	}
	s.Close()
}

func TestDecodeEvent(t *testing.T) {
	for procedure, want := range map[int32]Kind{
		318: Lifecycle, 333: DeviceRemoved, 354: DeviceAdded,
		367: DeviceRemovalFailed,
	} {
		kind, ok := kindOf(remoteProgram, procedure)
		if !ok || kind != want {
			t.Errorf("%d is %d", procedure, kind)
		}
	}
	if _, ok := kindOf(remoteProgram, 319); ok {
		t.Error("a reboot is not asked for")
	}
	e := encoder{}
	e.int32(3)
	e.domain(guest)
	e.string("ua-vmnet-net0")
	callback, event, err := decodeEvent(DeviceRemoved, e.buf)
	if err != nil || callback != 3 || event != (Event{Kind: DeviceRemoved, Domain: guest, Device: "ua-vmnet-net0"}) {
		t.Errorf("%d, %+v, %v", callback, event, err)
	}
}

func TestDecodeMetadataChange(t *testing.T) {
	for uri, write := range map[string]func(*encoder){
		"urn:x": func(e *encoder) { e.present(true); e.string("urn:x") },
		"":      func(e *encoder) { e.present(false) }, // of a title
	} {
		var e encoder
		e.int32(7)
		e.domain(guest)
		e.int32(metadataElement)
		write(&e)
		callback, got, err := decodeEvent(MetadataChange, e.buf)
		if want := (Event{Kind: MetadataChange, Domain: guest, URI: uri}); callback != 7 || got != want || err != nil {
			t.Errorf("%d, %+v, %v; want %+v", callback, got, err, want)
		}
	}
}
