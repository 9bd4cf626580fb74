package declare

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/internal/guest"
	"vmnet/internal/guestfile"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qemu"
	"vmnet/internal/vmm/qmptest"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) {
	qmptest.Main()
	if os.Getenv(killEnv) != "" {
		if err := killed(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	leaktest.MainInUserNS(m)
}

func process(name string, pid, uid int, libvirt bool) qemu.Process {
	return qemu.Process{PID: pid, UID: uid, Started: 7, CmdLine: qemu.CmdLine{Name: name, Libvirt: libvirt}}
}

// TestFind: a process's name alone makes it nobody's guest.
func TestFind(t *testing.T) {
	const root, alice, bob = 0, 1000, 1001
	for _, tc := range []struct {
		name  string
		user  string
		procs []qemu.Process
		want  string // target's PID, whether it runs, its processes
		err   error
	}{
		{"none", "", []qemu.Process{process("P1", 5, root, false)}, "0 false []", nil},
		{"root's", "", []qemu.Process{process("P2", 5, root, false)}, "0 true [5 (started at 7)]", nil},
		{"bob's", "", []qemu.Process{process("P2", 5, bob, false)}, "0 false []", nil},
		{
			"bob's beside root's", "",
			[]qemu.Process{process("P2", 4, bob, false), process("P2", 5, root, false)},
			"0 true [5 (started at 7)]", nil,
		},
		{
			"two", "",
			[]qemu.Process{process("P2", 4, root, false), process("P2", 5, root, false)},
			"",
			qemu.ErrAmbiguous,
		},
		{"libvirt's", "", []qemu.Process{process("P2", 5, bob, true)}, "0 true [5 (started at 7)]", nil},
		{
			"root's before libvirt's", "",
			[]qemu.Process{process("P2", 4, bob, true), process("P2", 5, root, false)},
			"0 true [5 (started at 7)]", nil,
		},
		{
			"alice's", "1000",
			[]qemu.Process{process("P2", 4, bob, false), process("P2", 5, alice, false)},
			"5 true [5 (started at 7)]", nil,
		},
		{
			"not alice's", "1000",
			[]qemu.Process{process("P2", 4, bob, false), process("P2", 5, root, false)},
			"0 false []", nil,
		},
		{"libvirt's for alice", "1000", []qemu.Process{process("P2", 4, bob, true)}, "0 false []", nil},
	} {
		p, err := find(&guestfile.Guest{VM: "P2", User: tc.user}, qemu.Running{All: tc.procs}, root)
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.err)
		}
		if got := fmt.Sprintf("%d %v [%s]", p.target.PID, p.Running, p.self); tc.err == nil && got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// lab is a host with two bridges, in a namespace of its own.
type lab struct {
	*testing.T
	m  *tapmgr.Manager
	nl *rtnl.Conn
	ns string // path
	ap *Applier
}

func newLab(t *testing.T) *lab {
	t.Helper()
	nstest.RequireTun(t)
	ns := nstest.NewInUserNS(t)
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	h, err := bridge.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, name := range []string{"br0", "br1"} {
		if err := h.Create(bridge.Config{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	m, err := tapmgr.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return &lab{t, m, nl, ns.Path(), &Applier{Manager: m, AttachWait: time.Minute, DetachWait: time.Minute}}
}

func guestOf(t *testing.T, vm, nics string) *guestfile.Guest {
	t.Helper()
	g, err := guestfile.Parse("f", vm, []byte("nics: "+nics))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// apply applies a file, and returns what was done.
func (l *lab) apply(vm, nics string) (string, error) {
	l.Helper()
	p, err := l.ap.Apply(l.Context(), guestOf(l.T, vm, nics))
	var got []string
	for _, c := range p.Changes {
		if c.Done {
			got = append(got, string(c.Action)+" "+c.NIC)
		}
	}
	return strings.Join(got, ", "), err
}

// are demands that the guest has these NICs, "ID bridge port link", and no others, nor the host.
func (l *lab) are(q *qmptest.QEMU, want ...string) {
	l.Helper()
	all, err := l.m.List(l.Context(), "")
	if err != nil {
		l.Fatal(err)
	}
	var got, devices []string
	for _, n := range all {
		link, err := l.nl.Link(n.Interface)
		if err != nil {
			l.Fatal(err)
		}
		state := "up"
		if !link.Carrier {
			state = "down"
		}
		got = append(got, strings.Join(strings.Fields(n.ID+" "+n.Source+" "+n.Port+" "+state), " "))
		devices = append(devices, "vmnet-"+n.ID)
		if down := q.State().Down["vmnet-"+n.ID]; down == link.Carrier {
			l.Errorf("%s is %s, and in the guest: down is %v", n.ID, state, down)
		}
	}
	plugged := slices.Sorted(maps.Keys(q.State().Devices))
	if !slices.Equal(got, want) || !slices.Equal(plugged, devices) {
		l.Errorf("NICs %q, and the guest has %q; want %q", got, plugged, want)
	}
}

func TestApply(t *testing.T) {
	l := newLab(t)
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	for _, tc := range []struct {
		nics, done string
		want       []string
	}{
		{"{}", "", nil},
		{
			"{net0: {bridge: br0}, net1: {bridge: br1, isolated: true, state: down}, net2: {state: absent}}",
			"attach net0, attach net1",
			[]string{"net0 br0 up", "net1 br1 isolated down"},
		},
		{
			"{net0: {bridge: br0}, net1: {bridge: br1, isolated: true, state: down}}",
			"",
			[]string{"net0 br0 up", "net1 br1 isolated down"},
		},
		{
			"{net0: {bridge: br1, isolated: true}, net1: {bridge: br1}}",
			"set net0, set net1",
			[]string{"net0 br1 isolated up", "net1 br1 up"},
		},
		{
			"{net1: {bridge: br1, state: absent}, net3: {bridge: br0}}",
			"detach net0, detach net1, attach net3",
			[]string{"net3 br0 up"},
		},
		{"{}", "detach net3", nil},
	} {
		got, err := l.apply("P2", tc.nics)
		if err != nil || got != tc.done {
			t.Errorf("%s: %q, %v; want %q", tc.nics, got, err, tc.done)
		}
		l.are(q, tc.want...)
	}
	if got, err := l.apply("P9", "{net0: {bridge: br0}}"); got != "" || err != nil {
		t.Errorf("a guest that does not run: %q, %v", got, err)
	}
}

// TestApplyWaits: a guest that is still to come from another QEMU has its address there. The
// program that migrates it prepares its NICs.
func TestApplyWaits(t *testing.T) {
	l := newLab(t)
	q := qmptest.Start(t, qmptest.Config{Name: "P2", Args: []string{"-incoming", "defer"}})
	q.Behave(qmptest.Behaviour{State: "inmigrate"})
	if _, err := l.apply("P2", "{net0: {bridge: br0}}"); !errors.Is(err, guest.ErrNotArrived) {
		t.Errorf("got %v", err)
	}
	l.are(q)
	q.Behave(qmptest.Behaviour{})
	if done, err := l.apply("P2", "{net0: {bridge: br0}}"); err != nil || done != "attach net0" {
		t.Errorf("arrived: %q, %v", done, err)
	}
}

// TestApplyRefuses: what cannot change is refused, and keeps no other NIC from it.
func TestApplyRefuses(t *testing.T) {
	l := newLab(t)
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	if _, err := l.apply("P2", "{net0: {bridge: br0}}"); err != nil {
		t.Fatal(err)
	}
	got, err := l.apply("P2", "{net0: {bridge: br1, model: e1000}, net1: {bridge: br9}, net2: {bridge: br0}}")
	if got != "attach net2" || err == nil || !strings.Contains(err.Error(), "--model cannot change") ||
		!strings.Contains(err.Error(), "br9") {
		t.Errorf("%q, %v", got, err)
	}
	l.are(q, "net0 br0 up", "net2 br0 up")
}

const (
	before = "{net0: {bridge: br0}, net1: {bridge: br0}}"
	after  = "{net0: {bridge: br1, isolated: true}, net2: {bridge: br1, state: down}}"
)

var errStep = errors.New("a step fails")

// failAt runs steps, of which that number fails, counted over all lists.
func failAt(at int, fail func() error) step.Runner {
	n := 0
	return func(ctx context.Context, steps []step.Step) error {
		return step.Run(ctx, steps, func(ctx context.Context, _ step.Step, do func(context.Context) error) error {
			if n++; n == at {
				return fail()
			}
			return do(ctx)
		})
	}
}

// TestApplyFails: an apply of which any step fails leaves each NIC as it was or as it should be.
func TestApplyFails(t *testing.T) {
	l := newLab(t)
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	l.eachStep(q, func(at int) error {
		l.m.Run = failAt(at, func() error { return errStep })
		defer func() { l.m.Run = nil }()
		_, err := l.apply("P2", after)
		if err != nil && !errors.Is(err, errStep) {
			t.Errorf("step %d: %v", at, err)
		}
		if checked, err := l.m.Check(t.Context()); err != nil || len(checked.Differences) > 0 {
			t.Errorf("step %d: check says %+v, %v", at, checked.Differences, err)
		}
		return err
	})
}

// TestApplyKilled: an apply that is killed before any step is completed by the next one.
func TestApplyKilled(t *testing.T) {
	l := newLab(t)
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	self, err := os.Open(l.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	l.eachStep(q, func(at int) error {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", killEnv, at))
		cmd.ExtraFiles = []*os.File{self}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("step %d: %v\n%s", at, err, out)
		}
		return err
	})
}

// killEnv has the test binary apply a file, and be killed before the step of that number.
const killEnv = "VMNET_TEST_KILL_APPLY"

func killed() error {
	at, err := strconv.Atoi(os.Getenv(killEnv))
	if err != nil {
		return err
	}
	m, err := tapmgr.Open("/proc/self/fd/3")
	if err != nil {
		return err
	}
	m.Run = failAt(at, func() error {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	})
	g, err := guestfile.Parse("f", "P2", []byte("nics: "+after))
	if err != nil {
		return err
	}
	ap := Applier{Manager: m, AttachWait: time.Minute, DetachWait: time.Minute}
	_, err = ap.Apply(context.Background(), g)
	return err
}

// eachStep has an apply broken at each of its steps, until none is left to break. After each, the
// same apply completes it.
func (l *lab) eachStep(q *qmptest.QEMU, broken func(at int) error) {
	l.Helper()
	for at := 1; ; at++ {
		if _, err := l.apply("P2", before); err != nil {
			l.Fatal(err)
		}
		err := broken(at)
		if _, err := l.apply("P2", after); err != nil {
			l.Errorf("step %d, completed: %v", at, err)
		}
		l.are(q, "net0 br1 isolated up", "net2 br1 down")
		if err == nil {
			l.Logf("%d steps", at-1)
			return
		}
		if at > 100 {
			l.Fatal("there is no end of steps")
		}
	}
}

// TestGuestStartsAgain: its NICs went with it, and it gets them again.
func TestGuestStartsAgain(t *testing.T) {
	l := newLab(t)
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	if _, err := l.apply("P2", "{net0: {bridge: br0}}"); err != nil {
		t.Fatal(err)
	}
	q.Kill()
	nstest.Eventually(t, 20*time.Second, "the tap goes with its guest", func() bool {
		all, err := l.m.List(t.Context(), "")
		return err == nil && len(all) == 0
	})
	q = qmptest.Start(t, qmptest.Config{Name: "P2"})
	if got, err := l.apply("P2", "{net0: {bridge: br0}}"); err != nil || got != "attach net0" {
		t.Errorf("%q, %v", got, err)
	}
	l.are(q, "net0 br0 up")
}

// TestAnotherUsersFile: a file that names another user means no guest of the caller.
func TestAnotherUsersFile(t *testing.T) {
	l := newLab(t)
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	g := guestOf(t, "P2", "{net0: {bridge: br0}}")
	g.User = fmt.Sprint(os.Geteuid() + 1)
	p, err := l.ap.Apply(t.Context(), g)
	its := fmt.Sprintf("process %d of uid", q.PID) // others may have the name, too
	if err != nil || p.Running || !slices.ContainsFunc(p.Notices, func(n string) bool {
		return strings.HasPrefix(n, its)
	}) {
		t.Errorf("%+v, %v", p, err)
	}
	l.are(q)
	g.User = fmt.Sprint(os.Geteuid())
	if p, err = l.ap.Apply(t.Context(), g); err != nil || len(p.Changes) != 1 || !p.Changes[0].Done {
		t.Errorf("%+v, %v", p, err)
	}
	l.are(q, "net0 br0 up")
}

var _ Manager = (*tapmgr.Manager)(nil)

// slow is a Manager whose attaches take as long as the test likes, or fail.
type slow struct {
	attach func(context.Context, nic.Spec) error
}

func (slow) Records(context.Context, nic.Target) ([]tapmgr.Recorded, error) { return nil, nil }

func (slow) Arrived(context.Context, nic.Target) error { return nil }

func (s slow) Attach(ctx context.Context, spec nic.Spec) (nic.Result, error) {
	return nic.Result{Changed: true}, s.attach(ctx, spec)
}

func (slow) Set(context.Context, nic.Target, string, func(nic.Spec) (nic.Spec, error)) (nic.ChangeResult, error) {
	return nic.ChangeResult{}, nil
}

func (slow) Detach(context.Context, tapmgr.DetachSpec) (tapmgr.DetachResult, error) {
	return tapmgr.DetachResult{}, nil
}
