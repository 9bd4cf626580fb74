package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// A moody store fails, or does not answer, as systemd does while it is busy.
type moody struct {
	*memory
	mu      sync.Mutex
	forgets error // of Forget, which has forgotten then or does so later
	stores  error
	part    int           // Forget forgets so many names and fails, unless it is 0
	blocks  chan struct{} // unless it is nil, each call waits until it is closed
}

func (m *moody) now() (forgets, stores error) {
	m.mu.Lock()
	forgets, stores, blocks := m.forgets, m.stores, m.blocks
	m.mu.Unlock()
	if blocks != nil {
		<-blocks
	}
	return forgets, stores
}

func (m *moody) set(forgets, stores error, blocks chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgets, m.stores, m.blocks = forgets, stores, blocks
}

func (m *moody) Forget(names ...string) error {
	if err, _ := m.now(); err != nil {
		return err
	}
	m.mu.Lock()
	part := m.part
	m.mu.Unlock()
	if part > 0 {
		return errors.Join(m.memory.Forget(names[:min(part, len(names))]...), errors.New("killed"))
	}
	return m.memory.Forget(names...)
}

func (m *moody) Store(name string, f *os.File) error {
	if _, err := m.now(); err != nil {
		return err
	}
	return m.memory.Store(name, f)
}

// noted collects notes.
type noted struct {
	mu  sync.Mutex
	all []string
}

func (n *noted) note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, text)
}

func (n *noted) has(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.all, func(s string) bool { return strings.Contains(s, text) })
}

// moodily serves a switch that is kept in a store with room for most files.
func moodily(t *testing.T, most int) (c *control.Client, s *Server, m *moody, n *noted) {
	t.Helper()
	s, path, _ := handing(t)
	m, n = &moody{memory: newMemory(t)}, &noted{}
	s.KeepIn(m, most, n.note)
	kept(s)
	return client(t, path), s, m, n
}

func (m *moody) awaits(t *testing.T, want ...string) {
	t.Helper()
	nstest.Eventually(t, patience, fmt.Sprintf("%q is stored", want), func() bool {
		slices.Sort(want)
		return slices.Equal(m.names(), want)
	})
}

// TestLateForget has a store that has not confirmed in time that it has forgotten something. The
// ports stay stored, and ids are not given to others before it has.
func TestLateForget(t *testing.T) {
	c, _, m, n := moodily(t, 0)
	guest(t, c, control.Port{Name: "a"})
	guest(t, c, control.Port{Name: "b"})
	m.set(errors.New("late"), nil, nil)
	if err := errors.Join(c.SetLabel(soon(t), "a", "new"), c.RemovePort(soon(t), "b")); err != nil {
		t.Fatal(err)
	}
	guest(t, c, control.Port{Name: "c"})
	if !n.has("late") {
		t.Errorf("%q", n.all)
	}
	if n.has("would end") {
		t.Errorf("%q", n.all)
	}
	m.awaits(t, wholeName, fileName(1, 0), describedBy(1, 1), describedBy(1, 3), fileName(2, 0), describedBy(2, 2),
		fileName(3, 0), describedBy(3, 4))
	m.set(nil, nil, nil)
	m.awaits(t, wholeName, fileName(1, 0), describedBy(1, 3), fileName(3, 0), describedBy(3, 4))
	guest(t, c, control.Port{Name: "d"})
	m.awaits(t, wholeName, fileName(1, 0), describedBy(1, 3), fileName(2, 0), describedBy(2, 5), fileName(3, 0),
		describedBy(3, 4))
	s, notes := goOn(t, m.copied(t))
	if ports := s.Ports(); len(ports) != 3 || ports[0].Label != "new" || len(notes.all) > 0 {
		t.Errorf("%+v, %q", ports, notes.all)
	}
}

// TestForgetsInOrder kills a switch while it forgets a port. The next one misses none of its files.
func TestForgetsInOrder(t *testing.T) {
	c, _, m, _ := moodily(t, 0)
	guest(t, c, control.Port{Name: "a"})
	guest(t, c, control.Port{Name: "b"})
	m.mu.Lock()
	m.part = 1
	m.mu.Unlock()
	if err := c.RemovePort(soon(t), "b"); err != nil {
		t.Fatal(err)
	}
	s, notes := goOn(t, m.copied(t))
	if ports := s.Ports(); len(ports) != 1 || len(notes.all) > 0 {
		t.Errorf("%+v, %q", ports, notes.all)
	}
}

// TestStuckStore has a store that does not answer. Clients do not wait for it, nor the end of a
// port's holder; what was to be kept is kept later.
func TestStuckStore(t *testing.T) {
	c, s, m, n := moodily(t, 0)
	guest(t, c, control.Port{Name: "a"})
	cmd, pidfd := sleeper(t)
	stuck := make(chan struct{})
	m.set(nil, nil, stuck)
	guest(t, c, control.Port{Name: "b"})
	guest(t, c, control.Port{Name: "held", Holder: cmd.Process.Pid}, pidfd)
	err := errors.Join(c.SetLabel(soon(t), "a", "new"), c.SetPort(soon(t), "a", vport.Config{MaxAddresses: 7}),
		c.AddStatic(soon(t), control.FDBEntry{MAC: "02:00:00:00:00:08", Port: "b"}), cmd.Process.Kill())
	if err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the port goes with its holder", func() bool {
		return slices.Equal(names(t, c), []string{"a", "b"})
	})
	if got := m.names(); len(got) != 3 {
		t.Errorf("%q", got)
	}
	m.set(nil, nil, nil)
	close(stuck)
	s.ports.keeper.await(patience)
	next, notes := goOn(t, m.copied(t))
	if ports := next.Ports(); len(ports) != 2 || ports[0].Label != "new" || len(notes.all) > 0 || len(n.all) > 0 {
		t.Errorf("%+v, %q, %q", ports, notes.all, n.all)
	}
}

// TestRefusedStore has a store that fails. It is tried again, and older descriptions stay.
func TestRefusedStore(t *testing.T) {
	c, _, m, n := moodily(t, 0)
	guest(t, c, control.Port{Name: "a"})
	m.set(nil, errors.New("refused"), nil)
	if err := c.SetLabel(soon(t), "a", "new"); err != nil {
		t.Fatal(err)
	}
	guest(t, c, control.Port{Name: "b"})
	if !n.has("port a would end with this process: refused") || !n.has("port b would end") || len(n.all) != 2 {
		t.Errorf("%q", n.all)
	}
	if got := m.names(); len(got) != 3 {
		t.Errorf("%q", got)
	}
	m.set(nil, nil, nil)
	nstest.Eventually(t, patience, "both are stored", func() bool { return len(m.names()) == 5 })
}

// TestFullStore stores ports up to the limit of the store, and no part of one beyond. Those that
// are stored can change.
func TestFullStore(t *testing.T) {
	c, s, m, n := moodily(t, 8)
	for _, name := range []string{"a", "b", "c", "d"} {
		guest(t, c, control.Port{Name: name})
	}
	if !n.has("port d would end with this process: the store has room for 8 files") || len(n.all) != 1 {
		t.Errorf("%q", n.all)
	}
	if err := c.SetLabel(soon(t), "c", "new"); err != nil {
		t.Fatal(err)
	}
	if got := m.names(); len(got) != 1+3*2 || !slices.Contains(got, describedBy(3, 4)) {
		t.Errorf("%q", got)
	}
	if err := c.RemovePort(soon(t), "a"); err != nil {
		t.Fatal(err)
	}
	s.ports.keeper.await(patience)
	if got := m.names(); len(got) != 1+3*2 || !slices.Contains(got, fileName(4, 0)) {
		t.Errorf("%q", got)
	}
}

// TestHandOverUnstored hands over a port that is not stored, before one that is: the former gets
// an id that no other has.
func TestHandOverUnstored(t *testing.T) {
	old, path, ended := handing(t)
	c := client(t, path)
	guest(t, c, control.Port{Name: "a"})
	m, n := &moody{memory: newMemory(t)}, &noted{}
	old.KeepIn(m, 0, n.note)
	guest(t, c, control.Port{Name: "gone"})
	guest(t, c, control.Port{Name: "z"})
	m.set(errors.New("late"), nil, nil)
	if err := c.RemovePort(soon(t), "gone"); err != nil {
		t.Fatal(err)
	}
	s, taking, err := take(t, c)
	if err == nil {
		err = c.Taken(soon(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.KeepIn(m, 0, n.note)
	if err := taking.Begin(); err != nil {
		t.Fatal(err)
	}
	<-ended
	m.set(nil, nil, nil)
	kept(s)
	// Neither process has stored this before: it has one of them now.
	if !slices.Contains(m.names(), wholeName) || n.has("two files") {
		t.Errorf("%q, %q", m.names(), n.all)
	}
	nstest.Eventually(t, patience, "what is gone is forgotten", func() bool {
		return !slices.Contains(m.names(), fileName(1, 0)) && len(m.names()) == 1+2*2
	})
	next, notes := goOn(t, m.copied(t))
	if ports := next.Ports(); len(ports) != 2 || len(notes.all) > 0 {
		t.Errorf("%+v, %q", ports, notes.all)
	}
}

// TestHandOverForgetsEnded hands over a switch with a port that has just ended.
func TestHandOverForgetsEnded(t *testing.T) {
	c, s, m, _ := moodily(t, 0)
	guest(t, c, control.Port{Name: "a"})
	near, far := streamOf(t, c, "b")
	_ = near.Close()
	s.ports.mu.Lock() // before the port is released
	in := s.ports.byName["b"].in
	if _, err := far.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil { // no length of a frame
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the port has ended", func() bool { return in.Err() != nil })
	goOn := s.ports.keeper.halt()
	rests, entries, err := s.ports.freeze()
	if stale, _ := s.ports.keeper.rest(); !slices.Contains(stale, fileName(2, 0)) {
		t.Errorf("%q are to be forgotten", stale)
	}
	err = errors.Join(err, s.ports.thaw(rests, entries))
	goOn()
	s.ports.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	m.awaits(t, wholeName, fileName(1, 0), describedBy(1, 1))
}

// TestLeaveStored ends a switch that could not serve what another process has stored.
func TestLeaveStored(t *testing.T) {
	c, s, m, _ := moodily(t, 0)
	guest(t, c, control.Port{Name: "a"})
	before := m.names()
	s.LeaveStored()
	if err := c.Stop(soon(t)); err != nil {
		t.Fatal(err)
	}
	if after := m.names(); !slices.Equal(after, before) {
		t.Errorf("%q after %q", after, before)
	}
}

// TestKeptStatics has static addresses that move, go with a VLAN, are removed and added again.
// Another process has those that the FDB had, also if it was killed before it had added them.
func TestKeptStatics(t *testing.T) {
	c, s, m, _ := moodily(t, 0)
	guest(t, c, control.Port{Name: "a", Config: vport.Config{Settings: brport.Settings{VLAN: 5}}})
	guest(t, c, control.Port{Name: "b", Config: vport.Config{Settings: brport.Settings{VLAN: 5}}})
	guest(t, c, control.Port{Name: "c", Config: vport.Config{Settings: brport.Settings{VLAN: 6}}})
	static := func(n, vlan int, port string) control.FDBEntry {
		return control.FDBEntry{MAC: fmt.Sprintf("02:00:00:00:00:%02x", n), VLAN: vlan, Port: port, Static: true}
	}
	do := func(f func(context.Context, control.FDBEntry) error, e control.FDBEntry) {
		t.Helper()
		if err := f(soon(t), e); err != nil {
			t.Fatal(err)
		}
	}
	do(c.AddStatic, static(1, 0, "a"))
	do(c.AddStatic, static(1, 0, "b")) // it moves
	do(c.AddStatic, static(2, 0, "a"))
	do(c.AddStatic, static(3, 0, "c"))
	do(c.AddStatic, static(4, 0, "b"))
	do(c.RemoveStatic, static(4, 5, ""))
	for range 3 {
		do(c.AddStatic, static(5, 5, "b"))
	}
	if err := c.SetPort(soon(t), "c", vport.Config{Settings: brport.Settings{VLAN: 7}}); err != nil {
		t.Fatal(err)
	}
	want := []control.FDBEntry{static(1, 5, "b"), static(2, 5, "a"), static(5, 5, "b")}
	statics := func(s *Server) []control.FDBEntry {
		return slices.DeleteFunc(s.ports.fdb(), func(e control.FDBEntry) bool { return !e.Static })
	}
	check := func(s *Server) {
		t.Helper()
		if got := statics(s); !slices.Equal(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	check(s)
	left := m.copied(t)
	next, _ := goOn(t, left)
	check(next)

	// A device changes when its port is there, and its addresses are not.
	half := left.copied(t)
	before := half.names()
	killed := New(vswitch.New(vswitch.Config{}), control.Info{})
	killed.KeepIn(half, 0, func(text string) { t.Error(text) })
	taking, err := killed.Kept(half.copied(t).files)
	if err != nil {
		t.Fatal(err)
	}
	for i, sh := range killed.ports.takeShelves(taking) {
		p := &taking.parts[i]
		if err := killed.ports.addResumed(p.Port, p.files, vswitch.Rest{}, sh); err != nil {
			t.Fatal(err)
		}
		e := killed.ports.byName[p.Name]
		killed.ports.update(e, e.in)
	}
	killed.ports.keeper.await(patience)
	if got := half.names(); !slices.Equal(got, before) {
		t.Errorf("%q, before %q", got, before)
	}
	killed.LeaveStored()
	if err := killed.ports.sw.Close(); err != nil {
		t.Error(err)
	}
	killed.Close()
	next, _ = goOn(t, half)
	check(next)
}
