package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/nstest"
)

// serveToHandOver runs a switch that may be handed over. ended gets the process that has taken it.
func serveToHandOver(t *testing.T) (path string, ended chan int) {
	t.Helper()
	_, path, ended = handing(t)
	return path, ended
}

// handing is serveToHandOver with the server.
func handing(t *testing.T) (s *Server, path string, ended chan int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sw")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	sw := vswitch.New(vswitch.Config{})
	s = New(sw, control.Info{Name: "sw", Version: "1", Ageing: 300})
	s.HandsOver(l, nil)
	ended = make(chan int, 1)
	done := make(chan error, 1)
	go func() {
		err := errors.Join(s.Serve(context.Background(), l), sw.Close())
		pid, taken := s.HandedTo()
		if taken {
			err = errors.Join(err, l.Abandon())
		} else {
			err = errors.Join(err, l.Close())
		}
		s.Close()
		ended <- pid
		done <- err
	}()
	t.Cleanup(func() {
		s.stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, path, ended
}

// take takes a switch over into a new one, up to the confirmation.
func take(t *testing.T, c *control.Client) (*Server, *Taking, error) {
	t.Helper()
	sw := vswitch.New(vswitch.Config{})
	s := New(sw, control.Info{Name: "sw", Version: "2", Ageing: 300})
	taking := s.Taking(c.Path())
	t.Cleanup(func() {
		taking.Close()
		if taking.Listener != nil {
			_ = taking.Listener.Close()
		}
		_ = sw.Close()
		s.Close()
	})
	return s, taking, c.HandOver(soon(t), taking.Part, taking.Entries)
}

// passes sends a frame from one guest to another that is not flooded.
func passes(t *testing.T, from, to *os.File, dst, src []byte) {
	t.Helper()
	send(t, from, frame(dst, src))
	if got := awaitFrame(t, to); !bytes.Equal(got, frame(dst, src)) {
		t.Errorf("%x", got)
	}
}

// TestHandOver hands over guests with their holders, labels, settings and addresses.
func TestHandOver(t *testing.T) {
	path, ended := serveToHandOver(t)
	c := client(t, path)
	cmd, pidfd := sleeper(t)
	a := guest(t, c, control.Port{Name: "a", Holder: cmd.Process.Pid, Label: "first"}, pidfd)
	b := guest(t, c, control.Port{Name: "b"})
	x := guest(t, c, control.Port{Name: "x"})
	if err := errors.Join(c.SetLabel(soon(t), "a", "vmnet vm=P2 nic=net0"),
		c.SetPort(soon(t), "b", vport.Config{MaxAddresses: 7}),
		c.AddStatic(soon(t), control.FDBEntry{MAC: "02:00:00:00:00:09", Port: "b"})); err != nil {
		t.Fatal(err)
	}
	send(t, a, frame(station(9), station(1)))
	awaitFrame(t, b)

	s, taking, err := take(t, c)
	if err == nil {
		err = c.Taken(soon(t))
	}
	if err == nil {
		err = taking.Begin()
	}
	if err != nil {
		t.Fatal(err)
	}
	if pid := <-ended; pid != os.Getpid() {
		t.Errorf("handed over to process %d", pid)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), taking.Listener) }()
	defer func() {
		s.stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	next := client(t, path)
	ports, err := next.Ports(soon(t))
	if err != nil || len(ports) != 3 || ports[0].Label != "vmnet vm=P2 nic=net0" || ports[1].Config.MaxAddresses != 7 {
		t.Fatalf("%+v, %v", ports, err)
	}
	passes(t, b, a, station(1), station(9)) // known without a frame of it
	passes(t, a, b, station(9), station(1))
	entries, err := next.FDB(soon(t))
	static := func(e control.FDBEntry) bool { return e.Static }
	if err != nil || len(entries) != 2 || !slices.ContainsFunc(entries, static) {
		t.Errorf("%+v, %v", entries, err)
	}
	if n := len(drain(x)); n != 0 {
		t.Errorf("%d frames were flooded", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the port goes with its holder", func() bool { return len(names(t, next)) == 2 })
}

// drain returns what a guest has received.
func drain(f *os.File) (all [][]byte) {
	for {
		b := make([]byte, 2000)
		n, err := f.Read(b)
		if err != nil {
			return all
		}
		all = append(all, b[:n])
	}
}

// TestHandOverFails ends the other process before it has taken the ports, and asks for what cannot
// be.
func TestHandOverFails(t *testing.T) {
	path, ended := serveToHandOver(t)
	c := client(t, path)
	cmd, pidfd := sleeper(t)
	a, b := guest(t, c, control.Port{Name: "a", Holder: cmd.Process.Pid}, pidfd), guest(t, c, control.Port{Name: "b"})
	send(t, b, frame(station(1), station(2)))
	awaitFrame(t, a)
	near, far := streamOf(t, c, "c")
	half := framed(frame(station(1), station(3)))
	if _, err := far.Write(half[:20]); err != nil {
		t.Fatal(err)
	}
	for what, leave := range map[string]func(c *control.Client) error{
		"it hangs up": func(c *control.Client) error {
			_, taking, err := take(t, c)
			taking.Close()
			return errors.Join(err, c.Close())
		},
		"it hangs up between the parts": func(c *control.Client) error {
			stop := errors.New("stop")
			err := c.HandOver(soon(t), func(h control.Handed, _ []*os.File) error {
				if h.Port != nil {
					return stop
				}
				return nil
			}, nil)
			if !errors.Is(err, stop) {
				return err
			}
			return c.Close()
		},
		"it asks for something else": func(c *control.Client) error {
			_, _, err := take(t, c)
			if _, infoErr := c.Info(soon(t)); infoErr == nil {
				return errors.Join(err, errors.New("it got an answer"))
			}
			return err
		},
	} {
		if err := leave(client(t, path)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		nstest.Eventually(t, patience, "after "+what+", the switch goes on", func() bool {
			return slices.Equal(names(t, client(t, path)), []string{"a", "b", "c"})
		})
		passes(t, a, b, station(2), station(1))
	}
	if _, err := far.Write(half[20:]); err != nil {
		t.Fatal(err)
	}
	if got := awaitFrame(t, a); !bytes.Equal(got, frame(station(1), station(3))) {
		t.Errorf("a frame that was begun before: %x", got)
	}
	_ = near
	if err := client(t, path).Taken(soon(t)); !errors.Is(err, brport.ErrInvalid) {
		t.Errorf("taken without a hand-over: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the port goes with its holder", func() bool {
		return slices.Equal(names(t, client(t, path)), []string{"b", "c"})
	})
	select {
	case pid := <-ended:
		t.Errorf("the switch has ended, handed over to %d", pid)
	default:
	}
}

// streamOf adds a stream port, and returns both ends.
func streamOf(t *testing.T, c *control.Client, name string) (near, far *os.File) {
	t.Helper()
	near, far, err := endpoint.StreamFiles()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	if err := c.AddPort(soon(t), control.Port{Name: name, Kind: control.Stream}, near); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// framed returns a frame as it is in a stream.
func framed(frame []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
}

// TestHandOverWithoutEnded hands over a switch with a port that has ended, and makes requests wait
// for it.
func TestHandOverWithoutEnded(t *testing.T) {
	path, ended := serveToHandOver(t)
	c := client(t, path)
	guest(t, c, control.Port{Name: "a"})
	_, far := streamOf(t, c, "b")
	waits := client(t, path)
	if err := waits.SetLabel(soon(t), "a", "before"); err != nil {
		t.Fatal(err)
	}
	s, taking, err := take(t, c)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	go func() { asked <- waits.SetLabel(soon(t), "a", "meanwhile") }()
	if err := errors.Join(c.Taken(soon(t)), taking.Begin()); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a request that has waited: %v", err)
	}
	<-ended
	if all := s.Ports(); len(all) != 2 || all[0].Label != "before" {
		t.Errorf("%+v", all)
	}
	_ = far
}

// TestEndedPortFreesItsFiles ends a port without a holder. The switch keeps none of its files, and
// does not hand it over.
func TestEndedPortFreesItsFiles(t *testing.T) {
	path, _ := serveToHandOver(t)
	c := client(t, path)
	guest(t, c, control.Port{Name: "a"})
	near, far := streamOf(t, c, "b")
	_ = near.Close()
	if _, err := far.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil { // no length of a frame
		t.Fatal(err)
	}
	if err := far.SetReadDeadline(time.Now().Add(patience)); err == nil {
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("its other end: %v", err)
		}
	}
	nstest.Eventually(t, patience, "the port has ended", func() bool {
		ports, err := c.Ports(soon(t))
		return err == nil && len(ports) == 2 && ports[1].Stats.State == vport.StateEnded
	})
	_, taking, err := take(t, c)
	if err != nil || taking.Ports() != 1 {
		t.Errorf("%d ports, %v", taking.Ports(), err)
	}
}

// TestKeepsItsPorts asks a process that does more than to switch for its ports.
func TestKeepsItsPorts(t *testing.T) {
	path, _ := serve(t)
	_, _, err := take(t, client(t, path))
	if err == nil || !strings.Contains(err.Error(), "keeps its ports") {
		t.Error(err)
	}
}

// TestHostileHandOver has a switch send what no switch sends.
func TestHostileHandOver(t *testing.T) {
	s := New(vswitch.New(vswitch.Config{}), control.Info{})
	defer s.Close()
	defer s.ports.sw.Close()
	near, _ := socketFiles(t)
	for what, part := range map[string]struct {
		handed control.Handed
		files  []*os.File
	}{
		"nothing":               {},
		"no socket":             {files: []*os.File{near, near, near}},
		"a port without files":  {handed: control.Handed{Port: &control.Port{Name: "p", Kind: control.Tap}}},
		"a port without a name": {control.Handed{Port: &control.Port{Kind: control.Socket}}, []*os.File{near}},
		"a rest without a file": {handed: control.Handed{Rest: &control.HandedRest{Name: "p"}}},
		"a rest that is short":  {control.Handed{Rest: &control.HandedRest{Name: "p", Read: 5}}, []*os.File{empty(t)}},
		"a rest too large":      {control.Handed{Rest: &control.HandedRest{Name: "p", Read: 1 << 40}}, []*os.File{near}},
		"a rest below zero":     {control.Handed{Rest: &control.HandedRest{Name: "p", Backlog: -1}}, []*os.File{near}},
	} {
		taking := s.Taking("/nonexistent")
		if err := taking.Part(part.handed, part.files); err == nil {
			t.Errorf("%s: no error", what)
		}
		taking.Close()
	}
	if all := s.Ports(); len(all) != 0 {
		t.Errorf("ports: %+v", all)
	}
}

func empty(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "empty"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}
