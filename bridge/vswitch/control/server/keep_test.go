package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/nstest"
)

// A memory is a Store in this process, which keeps no second copy of an open file, as that of
// systemd keeps none. cmd/vmnet has tests with systemd.
type memory struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func newMemory(t *testing.T) *memory {
	m := &memory{files: map[string]*os.File{}}
	t.Cleanup(func() { fdpass.CloseAll(slices.Collect(maps.Values(m.files))) })
	return m
}

func (m *memory) Store(name string, f *os.File) error {
	own, err := fdpass.Duplicate(f)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[name] != nil {
		return errors.Join(errors.New("two files named "+name), own.Close())
	}
	for _, f := range m.files {
		if sameFile(f, own) {
			return errors.Join(err, own.Close())
		}
	}
	m.files[name] = own
	return err
}

// sameFile reports whether two fds are copies of one (kcmp(2)).
func sameFile(a, b *os.File) bool {
	const kcmpFile = 0 // linux/kcmp.h
	pid := uintptr(os.Getpid())
	differs, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, a.Fd(), b.Fd(), 0)
	return errno == 0 && differs == 0
}

func (m *memory) Forget(names ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if f := m.files[name]; f != nil {
			_ = f.Close()
			delete(m.files, name)
		}
	}
	return nil
}

// copied returns what the store has now, as systemd passes it to the next process.
func (m *memory) copied(t *testing.T) *memory {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	next := newMemory(t)
	for name, f := range m.files {
		if err := next.Store(name, f); err != nil {
			t.Fatal(err)
		}
	}
	return next
}

func (m *memory) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.files))
}

// keeping serves a switch whose ports are kept in a store.
func keeping(t *testing.T) (path string, s *Server, m *memory) {
	t.Helper()
	s, path, _ = handing(t)
	m = newMemory(t)
	s.KeepIn(m, 0, func(text string) { t.Error(text) })
	kept(s)
	return path, s, m
}

// kept has a store say that it has all ports, and waits until all is stored.
func kept(s *Server) {
	s.ports.keeper.keepWhole()
	s.ports.keeper.await(patience)
}

// goOn makes a switch of what a store has.
func goOn(t *testing.T, m *memory) (s *Server, notes *noted) {
	t.Helper()
	sw := vswitch.New(vswitch.Config{})
	s, notes = New(sw, control.Info{Name: "sw"}), &noted{}
	t.Cleanup(func() {
		_ = sw.Close()
		s.Close()
	})
	s.KeepIn(m, 0, notes.note)
	taking, err := s.Kept(m.copied(t).files)
	if err != nil {
		t.Fatal(err)
	}
	defer taking.Close()
	if err := taking.Begin(); err != nil {
		notes.note(err.Error())
	}
	s.ports.keeper.await(patience)
	return s, notes
}

// journal returns what a stream's journal says of a read and a write under way, and how many bytes
// wait.
func journal(t *testing.T, m *memory, id int) []uint32 {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	b := make([]byte, 16)
	if _, err := m.files[fileName(id, 1)].ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	at := func(n int) uint32 { return binary.NativeEndian.Uint32(b[4*n:]) }
	return []uint32{at(0), at(1), at(3) - at(2)}
}

// TestKept goes on with guests of a switch whose process is killed.
func TestKept(t *testing.T) {
	path, _, m := keeping(t)
	c := client(t, path)
	cmd, pidfd := sleeper(t)
	gone, gonePidfd := sleeper(t)
	a := guest(t, c, control.Port{Name: "a", Holder: cmd.Process.Pid, Label: "first"}, pidfd)
	b := guest(t, c, control.Port{Name: "b", Holder: cmd.Process.Pid}, pidfd) // the same open file
	guest(t, c, control.Port{Name: "ends", Holder: gone.Process.Pid}, gonePidfd)
	guest(t, c, control.Port{Name: "removed"})
	_, half := streamOf(t, c, "half")
	_, torn := streamOf(t, c, "torn")
	whole := framed(frame(station(9), station(3)))
	for _, far := range []*os.File{half, torn} {
		if _, err := far.Write(whole[:20]); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(c.SetLabel(soon(t), "a", "vmnet vm=P2 nic=net0"), c.RemovePort(soon(t), "removed"),
		c.SetPort(soon(t), "b", vport.Config{MaxAddresses: 7}),
		c.AddStatic(soon(t), control.FDBEntry{MAC: "02:00:00:00:00:08", Port: "b"}),
		c.AddStatic(soon(t), control.FDBEntry{MAC: "02:00:00:00:00:09", Port: "b"}),
		c.RemoveStatic(soon(t), control.FDBEntry{MAC: "02:00:00:00:00:08"}))
	if err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the switch has read what the streams sent", func() bool {
		return slices.Equal(journal(t, m, 5), []uint32{0, 0, 20}) && slices.Equal(journal(t, m, 6), []uint32{0, 0, 20})
	})
	left := m.copied(t)
	if err := c.Stop(soon(t)); err != nil {
		t.Fatal(err)
	}
	if all := m.names(); len(all) > 0 {
		t.Errorf("of a switch that has ended, %q are stored", all)
	}
	_ = gone.Process.Kill()
	_ = gone.Wait()
	if _, err := left.files[fileName(6, 1)].WriteAt([]byte{1}, 0); err != nil { // it was reading
		t.Fatal(err)
	}

	s, notes := goOn(t, left)
	ports := s.Ports()
	if len(notes.all) != 1 || !strings.Contains(notes.all[0], "in the middle of a frame") || len(ports) != 3 ||
		ports[0].Label != "vmnet vm=P2 nic=net0" ||
		ports[1].Config.MaxAddresses != 7 {
		t.Errorf("%q, %+v", notes.all, ports)
	}
	passes(t, a, b, station(9), station(1))
	if _, err := half.Write(whole[20:]); err != nil {
		t.Fatal(err)
	}
	if got := awaitFrame(t, b); !bytes.Equal(got, whole[4:]) {
		t.Errorf("%x, want %x", got, whole[4:])
	}
	entries := s.ports.fdb()
	static := func(mac string) bool {
		return slices.ContainsFunc(entries, func(e control.FDBEntry) bool { return e.Static && e.MAC == mac })
	}
	if !static("02:00:00:00:00:09") || static("02:00:00:00:00:08") {
		t.Errorf("%+v", entries)
	}
	// Nothing is left of the others, and once more nothing of these.
	if all := left.names(); len(all) != 3*3+1 {
		t.Errorf("%q are stored", all)
	}
	_, _ = cmd.Process.Kill(), half.Close()
	nstest.Eventually(t, patience, "all is gone with the guests", func() bool {
		return len(s.Ports()) == 1 && slices.Equal(left.names(), []string{wholeName})
	})
}

// TestKeptInPart goes on with what a process has left that was killed at any file, or of which the
// store has had no room for all.
func TestKeptInPart(t *testing.T) {
	path, _, m := keeping(t)
	c := client(t, path)
	guest(t, c, control.Port{Name: "a"})
	guest(t, c, control.Port{Name: "b"})
	if err := c.SetLabel(soon(t), "b", "later"); err != nil {
		t.Fatal(err)
	}
	for _, name := range m.names() {
		left := m.copied(t)
		_ = left.Forget(name)
		if name == wholeName {
			sw := vswitch.New(vswitch.Config{})
			if _, err := New(sw, control.Info{}).Kept(left.files); !errors.Is(err, ErrNotKept) {
				t.Errorf("%v", err)
			}
			if err := sw.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		s, notes := goOn(t, left)
		if n := len(s.Ports()); n != 1 {
			t.Errorf("without %s: %d ports", name, n)
		}
		if file := strings.Contains(name, "."); file != (len(notes.all) == 1) {
			t.Errorf("without %s: %q", name, notes.all)
		}
		if all := left.names(); len(all) != 3 {
			t.Errorf("without %s: %q are stored", name, all)
		}
	}
	// Two versions of a description are there if it is killed between them.
	left := m.copied(t)
	older, err := os.Open("/dev/null")
	if err == nil {
		err = errors.Join(left.Store(describedBy(2, 1), older), older.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	s, _ := goOn(t, left)
	if ports := s.Ports(); len(ports) != 2 || ports[1].Label != "later" {
		t.Errorf("%+v", ports)
	}
}

// TestKeptNonsense has a store with files that no switch has stored.
func TestKeptNonsense(t *testing.T) {
	for _, text := range []string{
		"", "{", "{}", `{"port":{"name":"a","kind":"socket"},"files":-1}`,
		`{"port":{"name":"a","kind":"socket"},"files":100000}`, `{"port":{"name":"a","kind":"odd"},"files":1}`,
		strings.Repeat(" ", maxKept+1),
	} {
		left := newMemory(t)
		for name, content := range map[string]string{
			wholeName: keptFormat, describedBy(1, 1): text, fileName(1, 0): "x", "other": "",
		} {
			f, err := sealed([]byte(content))
			if err == nil {
				err = errors.Join(left.Store(name, f), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		s, notes := goOn(t, left)
		if len(s.Ports()) != 0 || len(notes.all) != 1 || !slices.Equal(left.names(), []string{wholeName}) {
			t.Errorf("%.40q: %+v, %q, %q", text, s.Ports(), notes.all, left.names())
		}
	}
}

// TestHandOverKept hands a switch over whose ports are in a store, which the next one goes on with.
func TestHandOverKept(t *testing.T) {
	old, path, ended := handing(t)
	m := newMemory(t)
	c := client(t, path)
	old.KeepIn(m, 0, func(text string) { t.Error(text) })
	guest(t, c, control.Port{Name: "a"})
	guest(t, c, control.Port{Name: "b"})
	kept(old)
	s, taking, err := take(t, c)
	if err == nil {
		err = c.Taken(soon(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.KeepIn(m, 0, func(text string) { t.Error(text) })
	if err := taking.Begin(); err != nil {
		t.Fatal(err)
	}
	<-ended
	kept(s)
	want := []string{describedBy(1, 3), fileName(1, 0), describedBy(2, 4), fileName(2, 0), wholeName}
	if got := m.names(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if err := s.ports.label("a", "new"); err != nil {
		t.Error(err)
	}
	if err := s.ports.remove("b"); err != nil {
		t.Error(err)
	}
	kept(s)
	want = []string{describedBy(1, 5), fileName(1, 0), wholeName}
	if got := m.names(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
