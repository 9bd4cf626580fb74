package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/libvirt/domainxml"
)

// fake is a daemon's end of a connection, played by a test, for faults that a real daemon does not
// produce on demand.
type fake struct {
	testing.TB
	uc *net.UnixConn
}

// listen creates a socket for fakes.
func listen(t testing.TB) (path string, accept func() *fake) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fake") // short, for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return path, func() *fake {
		uc, err := l.AcceptUnix()
		if err != nil {
			t.Error(err)
			return nil
		}
		t.Cleanup(func() { _ = uc.Close() })
		_ = uc.SetDeadline(time.Now().Add(30 * time.Second))
		return &fake{t, uc}
	}
}

// dialFake returns an open connection and the daemon's end of it.
func dialFake(t testing.TB) (*Conn, *fake) {
	t.Helper()
	path, accept := listen(t)
	opened := make(chan *fake, 1)
	go func() {
		f := accept()
		f.open()
		opened <- f
	}()
	c, err := Dial(within(t, 20*time.Second), path)
	if err != nil {
		t.Fatal(err)
	}
	f := <-opened
	t.Cleanup(func() {
		_ = f.uc.Close() // so that Close waits for no answer
		_ = c.Close()
	})
	return c, f
}

// open plays a daemon that authenticates every client.
func (f *fake) open() {
	f.reply(f.expect(authList), func(e *encoder) { e.uint32(1); e.uint32(uint32(authNone)) })
	f.reply(f.expect(connectOpen), nil)
}

// expect reads a call and checks that it is the expected one.
func (f *fake) expect(p procedure) message {
	f.Helper()
	m, err := readMessage(socket{f.uc})
	if err != nil || m.program != p.program || m.procedure != p.number {
		f.Errorf("got %s, %v; want a call of %s", m.header, err, p.name)
	}
	return m
}

func (f *fake) reply(to message, result func(*encoder)) {
	h := to.header
	h.kind = typeReply
	f.send(h, nil, result)
}

func (f *fake) refuse(to message, code Code, text string) {
	h := to.header
	h.kind, h.status = typeReply, statusError
	f.send(h, nil, errorPayload(code, text))
}

func errorPayload(code Code, text string) func(*encoder) {
	return func(e *encoder) {
		e.int32(int32(code))
		e.int32(10)
		e.present(true)
		e.string(text)
		e.int32(2)
		e.present(true)
		e.domain(guest)
		e.present(true)
		e.string(text)
		e.present(false)
		e.present(false)
		e.int32(-1)
		e.int32(-1)
		e.present(true)
		e.string("default")
		e.buf = append(e.buf, make([]byte, 16)...)
	}
}

func (f *fake) send(h header, files []*os.File, payload func(*encoder)) {
	f.Helper()
	fds, err := duplicate(files)
	if err == nil {
		err = send(f.uc, encode(h, len(files), payload), fds)
		fds.close()
	}
	if err != nil && !errors.Is(err, unix.EPIPE) {
		f.Error(err)
	}
}

func (f *fake) event(callback int32, change Change) {
	f.Helper()
	f.send(header{remoteProgram, 1, 318, typeMessage, 0, statusOK}, nil, func(e *encoder) {
		e.int32(callback)
		e.domain(guest)
		e.int32(int32(change))
		e.int32(0)
	})
}

var guest = Domain{Name: "guest", UUID: domainxml.UUID{1, 2, 15: 3}, ID: 7}

// TestBrokenDaemon sends bytes in place of a reply: the call and the connection fail with the
// reason, and nothing hangs.
func TestBrokenDaemon(t *testing.T) {
	const serial = 5 // go-libvirt's handshake used two, and so did AUTH_LIST and CONNECT_OPEN
	length := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	packet := func(h header) []byte { return h.packet(nil) }
	for name, test := range map[string]struct {
		send []byte
		want error
	}{
		"hang-up":               {nil, ErrNoConnection},
		"half a length":         {[]byte{0, 0}, ErrNoConnection},
		"length alone":          {length(100), ErrNoConnection},
		"half a packet":         {packet(header{remoteProgram, 1, 23, typeReply, serial, 0})[:20], ErrNoConnection},
		"largest, but no bytes": {length(maxPacket + lengthSize), ErrNoConnection},
		"too large":             {length(maxPacket + lengthSize + 1), ErrProtocol},
		"too small":             {length(27), ErrProtocol},
		"no length":             {length(0), ErrProtocol},
		"text":                  {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), ErrProtocol},
		"unknown serial":        {packet(header{remoteProgram, 1, 23, typeReply, 99, 0}), ErrProtocol},
		"another procedure":     {packet(header{remoteProgram, 1, 24, typeReply, serial, 0}), ErrProtocol},
		"unknown program":       {packet(header{1, 1, 23, typeReply, serial, 0}), ErrProtocol},
		"unknown version":       {packet(header{remoteProgram, 2, 23, typeReply, serial, 0}), ErrProtocol},
		"unknown status":        {packet(header{remoteProgram, 1, 23, typeReply, serial, 2}), ErrProtocol},
		"a call":                {packet(header{remoteProgram, 1, 23, typeCall, serial, 0}), ErrProtocol},
		"a stream":              {packet(header{remoteProgram, 1, 23, 3, serial, 0}), ErrProtocol},
		"an empty event":        {packet(header{remoteProgram, 1, 318, typeMessage, 0, 0}), ErrProtocol},
		"a huge event": {
			append(append(length(maxEvent+30),
				packet(header{remoteProgram, 1, 318, typeMessage, 0, 0})[4:]...), make([]byte, maxEvent+2)...),
			ErrProtocol,
		},
		"no number of files": {packet(header{remoteProgram, 1, 23, typeReplyWithFiles, serial, 0}), ErrProtocol},
		"33 files": {append(append(length(32),
			packet(header{remoteProgram, 1, 23, typeReplyWithFiles, serial, 0})[4:]...), length(33)...), ErrProtocol},
		"a byte without a file": {
			append(append(append(length(32),
				packet(header{remoteProgram, 1, 23, typeReplyWithFiles, serial, 0})[4:]...), length(1)...), 0),
			ErrProtocol,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, f := dialFake(t)
			go func() {
				if m := f.expect(domainLookupByName); m.serial != serial {
					f.Errorf("the call has serial %d", m.serial)
				}
				_, _ = f.uc.Write(test.send)
				_ = f.uc.CloseWrite()
			}()
			if _, err := c.LookupByName(within(t, 20*time.Second), "x"); !errors.Is(err, test.want) {
				t.Errorf("call: %v", err)
			}
			<-c.Done()
			if err := c.Err(); !errors.Is(err, test.want) {
				t.Errorf("connection: %v", err)
			}
			if _, err := c.Subscribe(t.Context(), nil, 1, Lifecycle); !errors.Is(err, test.want) {
				t.Errorf("subscribe: %v", err)
			}
		})
	}
}

// TestBrokenReply sends garbage within valid packets: only its call fails.
func TestBrokenReply(t *testing.T) {
	c, f := dialFake(t)
	go func() {
		f.reply(f.expect(domainLookupByName), func(e *encoder) { e.uint32(0xffffffff) })
		f.reply(f.expect(domainLookupByName), func(e *encoder) { e.domain(guest); e.uint32(0) })
		h := f.expect(domainLookupByName).header
		h.kind, h.status = typeReply, statusError
		f.send(h, nil, func(e *encoder) { e.uint32(1) })
		f.reply(f.expect(connectListAllDomains), func(e *encoder) { e.uint32(maxList) })
		f.reply(f.expect(connectListAllDomains), func(e *encoder) { e.uint32(maxList + 1) })
		f.reply(f.expect(domainLookupByName), func(e *encoder) { e.domain(guest) })
	}()
	ctx := within(t, 20*time.Second)
	for range 3 {
		if _, err := c.LookupByName(ctx, "x"); !errors.Is(err, ErrProtocol) {
			t.Error(err)
		}
	}
	for range 2 {
		if _, err := c.ListDomains(ctx, 0); !errors.Is(err, ErrProtocol) {
			t.Error(err)
		}
	}
	if dom, err := c.LookupByName(ctx, "x"); err != nil || dom != guest {
		t.Errorf("%+v, %v", dom, err)
	}
}

func TestRefusal(t *testing.T) {
	c, f := dialFake(t)
	go func() { f.refuse(f.expect(domainLookupByName), codeNoDomain, "Domain not found") }()
	_, err := c.LookupByName(within(t, 20*time.Second), "x")
	var got *Error
	if !errors.As(err, &got) || *got != (Error{"DOMAIN_LOOKUP_BY_NAME", codeNoDomain, 10, 2, "Domain not found"}) ||
		!errors.Is(err, ErrNoDomain) || errors.Is(err, ErrTimeout) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestRepliesOutOfOrder answers calls out of order, one of them after its caller has left.
func TestRepliesOutOfOrder(t *testing.T) {
	c, f := dialFake(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	left := make(chan error)
	go func() {
		_, err := c.LookupByName(ctx, "first")
		left <- err
	}()
	first := f.expect(domainLookupByName)
	cancel(why)
	if err := <-left; !errors.Is(err, why) {
		t.Error(err)
	}
	second := make(chan error)
	go func() {
		dom, err := c.LookupByName(within(t, 20*time.Second), "second")
		if err == nil && dom != guest {
			err = errors.New("the wrong reply")
		}
		second <- err
	}()
	m := f.expect(domainLookupByName)
	f.reply(f.expect0(c), nil) // a third call, answered before both
	f.reply(first, func(e *encoder) { e.domain(Domain{Name: "late"}) })
	f.reply(m, func(e *encoder) { e.domain(guest) })
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// expect0 makes a call on c and reads it.
func (f *fake) expect0(c *Conn) message {
	done := make(chan error, 1)
	f.Cleanup(func() {
		if err := <-done; err != nil {
			f.Error(err)
		}
	})
	go func() { done <- c.AttachDevice(within(f, 20*time.Second), guest, "<x/>", AffectLive) }()
	return f.expect(domainAttachDeviceFlags)
}

// TestFullSocket: a call that cannot be written ends with its context; when the daemon reads again,
// it finds whole packets.
func TestFullSocket(t *testing.T) {
	c, f := dialFake(t)
	big := strings.Repeat("x", maxString)
	for range 2 {
		if err := c.AttachDevice(within(t, 50*time.Millisecond), guest, big, 0); !errors.Is(err,
			context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	go func() {
		for m := f.expect(domainAttachDeviceFlags); ; {
			f.reply(m, nil)
			var err error
			if m, err = readMessage(socket{f.uc}); err != nil {
				return
			}
			if m.procedure == domainLookupByName.number {
				f.reply(m, func(e *encoder) { e.domain(guest) })
				return
			}
		}
	}()
	if dom, err := c.LookupByName(within(t, 20*time.Second), "x"); err != nil || dom != guest {
		t.Errorf("%+v, %v", dom, err)
	}
}

// TestFilesBothWays: files for a caller that has left are closed too, which leaktest checks.
func TestFilesBothWays(t *testing.T) {
	c, f := dialFake(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	go func() {
		m := f.expect(domainMonitorCommandWithFiles)
		h := m.header
		if m.kind != typeCallWithFiles || len(m.files) != 2 {
			f.Errorf("%s with %d files", m.header, len(m.files))
			return
		}
		h.kind = typeReplyWithFiles
		f.send(h, m.files[1:], func(e *encoder) { e.string("here") })
		_ = m.files[0].Close()
		_ = m.files[1].Close()
	}()
	reply, received, err := c.MonitorCommandWithFiles(within(t, 20*time.Second), guest, "{}", r, w)
	if err != nil || reply != "here" || len(received) != 1 {
		t.Fatalf("%q, %v, %v", reply, received, err)
	}
	_ = w.Close()
	if _, err := received[0].WriteString("through"); err != nil {
		t.Error(err)
	}
	_ = received[0].Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "through" {
		t.Errorf("%q, %v", got, err)
	}
	if _, _, err = c.MonitorCommandWithFiles(t.Context(), guest, "{}", w); err == nil || c.Err() != nil {
		t.Errorf("closed file: %v, %v", err, c.Err())
	}
	if _, _, err = c.MonitorCommandWithFiles(t.Context(), guest, "{}", make([]*os.File, maxFiles+1)...); err == nil {
		t.Error("33 files were taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		_, _, _ = c.MonitorCommandWithFiles(ctx, guest, "{}")
		close(left)
	}()
	m := f.expect(domainMonitorCommandWithFiles)
	cancel()
	<-left
	m.kind = typeReplyWithFiles
	f.send(m.header, []*os.File{r, r, r}, func(e *encoder) { e.string("too late") })
	f.ping()
}

// ping waits for the answer: the client has then read everything that was sent before.
func (f *fake) ping() {
	f.Helper()
	f.send(header{keepaliveProgram, 1, keepalivePing, typeMessage, 0, statusOK}, nil, nil)
	m, err := readMessage(socket{f.uc})
	if want := (header{keepaliveProgram, 1, keepalivePong, typeMessage, 0, statusOK}); err != nil || m.header != want {
		f.Errorf("%s, %v; want a pong", m.header, err)
	}
}

func TestOldLibvirtPassesNoFiles(t *testing.T) {
	c, f := dialFake(t)
	go func() { f.refuse(f.expect(domainMonitorCommandWithFiles), codeRPC, "unknown procedure: 7") }()
	if _, _, err := c.MonitorCommandWithFiles(within(t, 20*time.Second), guest, "{}"); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}

func TestKeepalive(t *testing.T) {
	c, f := dialFake(t)
	f.ping()
	f.ping()
	f.send(header{keepaliveProgram, 1, keepalivePong, typeMessage, 0, statusOK}, nil, nil)
	f.ping()
	if err := c.Err(); err != nil {
		t.Error(err)
	}
}

func TestCloseSaysGoodbye(t *testing.T) {
	c, f := dialFake(t)
	said := make(chan struct{})
	go func() {
		f.reply(f.expect(connectClose), nil)
		close(said)
	}()
	_ = c.Close()
	<-said
	_ = c.Close()
	if err := c.Err(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := c.LookupByName(t.Context(), "x"); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := readMessage(socket{f.uc}); err != io.EOF {
		t.Error(err)
	}
}

// TestCloseOfAStandingDaemon: with calls in flight, Close of a stopped daemon takes the documented
// time.
func TestCloseOfAStandingDaemon(t *testing.T) {
	c, _ := dialFake(t)
	ended := make(chan error)
	go func() {
		_, err := c.LookupByName(t.Context(), "x")
		ended <- err
	}()
	start := time.Now()
	go func() { _ = c.Close() }()
	if err := <-ended; !errors.Is(err, ErrClosed) || time.Since(start) > 10*closePatience {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}
