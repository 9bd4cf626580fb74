package libvirt

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// TestReplyBeforeTheCall: a daemon reads only the header of a call, answers it, and reads no more.
// Neither that call nor others wait beyond their contexts.
func TestReplyBeforeTheCall(t *testing.T) {
	c, f := dialFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- c.AttachDevice(ctx, guest, strings.Repeat("x", maxString), 0) }()
	f.reply(f.header(), nil)
	if _, err := c.LookupByName(within(t, 50*time.Millisecond), "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another call: %v", err)
	}
	cancel()
	select {
	case err := <-left:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the call outlives its context")
	}
	start := time.Now()
	_ = c.Close()
	if took := time.Since(start); took > 10*closePatience {
		t.Errorf("Close took %s", took)
	}
}

// TestLastWords: a daemon refuses a call that it has not read to its end, and hangs up.
func TestLastWords(t *testing.T) {
	c, f := dialFake(t)
	go func() {
		f.refuse(f.header(), codeOperationDenied, "too much")
		_ = f.uc.Close()
	}()
	err := c.AttachDevice(within(t, 20*time.Second), guest, strings.Repeat("x", maxString), 0)
	if !errors.Is(err, ErrAccessDenied) {
		t.Error(err)
	}
	<-c.Done()
	if err := c.Err(); !errors.Is(err, ErrNoConnection) {
		t.Error(err)
	}
}

// header reads only the header of a call.
func (f *fake) header() (m message) {
	b := make([]byte, lengthSize+headerSize)
	_, err := io.ReadFull(f.uc, b)
	if err == nil {
		m, _, err = parsePacket(b[lengthSize:])
	}
	if err != nil {
		f.Error(err)
	}
	return m
}

// TestReplyTwice: a daemon answers twice; go-libvirt would wait for a receiver of the second reply.
func TestReplyTwice(t *testing.T) {
	c, f := dialFake(t)
	go func() {
		m := f.expect(domainLookupByName)
		for range 2 {
			f.reply(m, func(e *encoder) { e.domain(guest) })
		}
	}()
	if dom, err := c.LookupByName(within(t, 20*time.Second), "x"); err != nil || dom != guest {
		t.Errorf("%+v, %v", dom, err)
	}
	<-c.Done()
	if err := c.Err(); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
}

// TestRefusals has errors that go-libvirt takes for success or for another error.
func TestRefusals(t *testing.T) {
	c, f := dialFake(t)
	go func() {
		f.refuse(f.expect(domainLookupByName), 0, "")
		f.refuse(f.expect(domainLookupByName), codeNoDomain, "no domain 'unknown procedure'")
	}()
	ctx := within(t, 20*time.Second)
	var refusal *Error
	if _, err := c.LookupByName(ctx, "x"); !errors.As(err, &refusal) || refusal.Code != 0 {
		t.Error(err)
	}
	if _, err := c.LookupByName(ctx, "x"); !errors.Is(err, ErrNoDomain) || errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}

// TestAnotherProcedure: go-libvirt sends another call than the requested one, as a changed version
// of it might. Nothing of it reaches the daemon.
func TestAnotherProcedure(t *testing.T) {
	c, f := dialFake(t)
	err := c.call(within(t, 20*time.Second), domainAttachDeviceFlags, c.lib.ConnectClose)
	if !errors.Is(err, ErrProtocol) || !errors.Is(c.Err(), ErrProtocol) {
		t.Errorf("%v, %v", err, c.Err())
	}
	if n, err := f.uc.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("sent %d bytes, %v", n, err)
	}
}

// FuzzReplies sends any reply to any call on one connection. A reply that does not have the
// procedure's form fails only its call, and go-libvirt allocates no more than a multiple of its
// size.
func FuzzReplies(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 1, 'x', 0, 0, 0}, uint8(0), false)
	f.Add([]byte{0x7f, 0xff, 0xff, 0xff, 'x', 0, 0, 0}, uint8(1), false)
	var e encoder
	e.domain(guest)
	f.Add(e.buf, uint8(2), false)
	e = encoder{}
	errorPayload(codeNoDomain, "Domain not found")(&e)
	f.Add(e.buf, uint8(3), true)
	c, d := dialFake(f)
	replies := make(chan message)
	go func() {
		for {
			m, err := readMessage(socket{d.uc})
			if err != nil {
				return
			}
			m.payload, m.kind = nil, typeReply
			answer := <-replies
			m.status = answer.status
			_, _ = d.uc.Write(m.packet(answer.payload))
		}
	}()
	f.Fuzz(func(t *testing.T, payload []byte, which uint8, refuse bool) {
		if len(payload) > maxEvent {
			return
		}
		_ = d.uc.SetDeadline(time.Now().Add(30 * time.Second))
		calls := []func(context.Context) error{
			func(ctx context.Context) error { _, err := c.ListDomains(ctx, 0); return err },
			func(ctx context.Context) error { _, err := c.XML(ctx, guest, 0); return err },
			func(ctx context.Context) error { _, err := c.LookupByName(ctx, "x"); return err },
			func(ctx context.Context) error { _, err := c.IsPersistent(ctx, guest); return err },
			func(ctx context.Context) error { _, err := c.State(ctx, guest); return err },
			func(ctx context.Context) error { return c.AttachDevice(ctx, guest, "x", 0) },
			func(ctx context.Context) error { _, err := c.MonitorCommand(ctx, guest, "x"); return err },
		}
		ctx := within(t, 20*time.Second)
		var err error
		used := allocated(func() {
			ended := make(chan error, 1)
			go func() { ended <- calls[int(which)%len(calls)](ctx) }()
			answer := message{payload: payload}
			if refuse {
				answer.status = statusError
			}
			replies <- answer
			err = <-ended
		})
		var refusal *Error
		if err != nil && !errors.Is(err, ErrProtocol) && !errors.As(err, &refusal) || refuse && err == nil {
			t.Error(err)
		}
		if allowed := uint64(256<<10 + 200*len(payload)); used > allowed {
			t.Errorf("%d bytes allocated for %d", used, len(payload))
		}
		if err := c.Err(); err != nil {
			t.Fatal(err)
		}
	})
}
