package vswitch

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/nstest"
)

var large = vport.Config{MTU: 65535}

// handedOver hands a port of l over to a new LAN, by copies of its file.
func (l *lan) handedOver(name string, f *os.File) (*lan, Rest) {
	l.tb.Helper()
	r, err := l.sw.HandOver(name)
	if err != nil {
		l.tb.Fatal(err)
	}
	next := newLAN(l.tb, nil)
	w, err := OpenStream(f, name)
	if err == nil {
		err = w.Resume(r)
	}
	if err != nil {
		l.tb.Fatal(err)
	}
	if _, err := next.sw.AddPort(name, w, large); err != nil {
		l.tb.Fatal(err)
	}
	return next, r
}

// TestHandOverStream hands over a stream in the middle of a frame in both directions.
func TestHandOverStream(t *testing.T) {
	near, far, err := endpoint.StreamFiles()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	l := newLAN(t, nil)
	w, err := OpenStream(near, "a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.sw.AddPort("a", w, large)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(far)
	if err = errors.Join(err, far.Close()); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a, b := talker{t, p, conn}, l.talks("b", vport.Config{})

	// More than a's socket takes, while a does not read.
	long := etherFrame(all, mac(2), nil, 60000)
	const count = 40
	for range count {
		b.writes(prefixed(long))
	}
	nstest.Eventually(t, soon, "a has a backlog", func() bool { return a.Stats().Total().TxFrames == count })
	half := prefixed(etherFrame(all, mac(1), nil, 700))
	a.writes(append(prefixed(etherFrame(all, mac(1), nil, 46)), half[:300]...))
	b.wants("a frame before", etherFrame(all, mac(1), nil, 46))

	next, r := l.handedOver("a", near)
	if len(r.Read) != 300 || len(r.Backlog) == 0 || r.Conn != nil {
		t.Errorf("%d bytes read, %d to write, connection %v", len(r.Read), len(r.Backlog), r.Conn)
	}
	c := next.talks("c", vport.Config{})
	a.writes(half[300:])
	c.wants("the frame that was begun", etherFrame(all, mac(1), nil, 700))
	for i := range count {
		if got, err := a.read(); err != nil || !bytes.Equal(got, long) {
			t.Fatalf("frame %d of the backlog: %d bytes, %v", i, len(got), err)
		}
	}
	c.writes(prefixed(etherFrame(all, mac(3), nil, 46)))
	a.wants("a frame after", etherFrame(all, mac(3), nil, 46))
}

// TestHandOverListening hands over a stream to which others connect. The connection goes on, and
// the socket's file stays for the next one.
func TestHandOverListening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f, err := endpoint.ListenStream(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := newLAN(t, nil)
	w, err := OpenStream(f, "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.sw.AddPort("a", w, vport.Config{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	await(t, p, vport.StateUp)
	a := talker{t, p, conn}
	next, r := l.handedOver("a", f)
	if r.Conn == nil {
		t.Error("the connection is not handed over")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	c := next.talks("c", vport.Config{})
	a.writes(prefixed(etherFrame(all, mac(1), nil, 46)))
	c.wants("a frame of the same connection", etherFrame(all, mac(1), nil, 46))
	_ = conn.Close()
	if conn, err = net.Dial("unix", path); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a.conn = conn
	a.writes(prefixed(etherFrame(all, mac(2), nil, 46)))
	c.wants("a frame of the next one", etherFrame(all, mac(2), nil, 46))
}

// TestResumeRefuses gives wires what no switch hands over.
func TestResumeRefuses(t *testing.T) {
	w, far, err := StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	defer w.Close()
	for what, r := range map[string]Rest{
		"too much read":     {Read: make([]byte, streamRoom+1)},
		"a backlog":         {Backlog: make([]byte, 2*maxBacklog)},
		"a negative number": {Skip: -1},
		"a large number":    {Skip: maxSkip + 1},
	} {
		if err := w.Resume(r); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	l := newLAN(t, nil)
	if _, err := l.sw.HandOver("nosuch"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a port that does not exist: %v", err)
	}
}
