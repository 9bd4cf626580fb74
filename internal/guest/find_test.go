package guest

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// TestCheckPeer: a listener is the guest only by its number, its user and, where the kernel has it,
// its pidfd.
func TestCheckPeer(t *testing.T) {
	self, other := pidfdOf(t, os.Getpid()), pidfdOf(t, os.Getppid())
	guests := qemu.Process{PID: os.Getpid(), UID: 54321}
	for name, tc := range map[string]struct {
		peer  qmp.Peer
		pidfd *os.File
		want  error
	}{
		"itself":                             {qmp.Peer{PID: os.Getpid(), UID: 54321}, self, nil},
		"itself, before Linux 6.5":           {qmp.Peer{PID: os.Getpid(), UID: 54321}, nil, nil},
		"itself, before it gave up root":     {qmp.Peer{PID: os.Getpid()}, self, nil},
		"another process":                    {qmp.Peer{PID: os.Getppid(), UID: 54321}, other, fs.ErrPermission},
		"one that had its number":            {qmp.Peer{PID: os.Getpid(), UID: 54321}, other, fs.ErrPermission},
		"itself, on a socket of its starter": {qmp.Peer{PID: os.Getpid(), UID: 54322}, self, fs.ErrPermission},
	} {
		hold, err := pidfd.Open(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		g := &Found{target: nic.Target{VM: "P2"}, process: guests, hold: hold}
		err = g.checkPeer(tc.peer, tc.pidfd)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		_ = hold.Close()
	}
}

// pidfdOf returns a new pidfd as a file.
func pidfdOf(t *testing.T, pid int) *os.File {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	fd, errDup := -1, error(nil)
	err = p.WithHandle(func(handle uintptr) { fd, errDup = syscall.Dup(int(handle)) })
	if err = errors.Join(err, errDup); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// process is a QEMU as /proc shows it: its guest's name and UUID are its own word.
func process(pid, uid int, name string, isLibvirts bool) qemu.Process {
	return qemu.Process{PID: pid, UID: uid, CmdLine: qemu.CmdLine{Name: name, Libvirt: isLibvirts}}
}

// TestChooseNamed: the caller's own guest of that name comes first, then libvirt's, for which
// libvirt must confirm. Other users' guests are refused.
func TestChooseNamed(t *testing.T) {
	own := os.Geteuid()
	for name, tc := range map[string]struct {
		running    []qemu.Process
		pid        int
		isLibvirts bool
		missing    error
	}{
		"none":             {nil, 0, false, qemu.ErrNotFound},
		"of another name":  {[]qemu.Process{process(7, own, "P3", false)}, 0, false, qemu.ErrNotFound},
		"the caller's own": {[]qemu.Process{process(7, own, "P2", false)}, 7, false, nil},
		"two of the same user": {
			[]qemu.Process{process(7, own, "P2", false), process(8, own, "P2", false)},
			0,
			false, qemu.ErrAmbiguous,
		},
		"another user's": {[]qemu.Process{process(7, own+1, "P2", false)}, 0, false, qemu.ErrOtherUser},
		"own, and another user's": {
			[]qemu.Process{process(7, own+1, "P2", false), process(8, own, "P2", false)},
			8, false, nil,
		},
		"libvirt's":                {[]qemu.Process{process(7, own+1, "P2", true)}, 0, true, nil},
		"libvirt's, of the caller": {[]qemu.Process{process(7, own, "P2", true)}, 0, true, nil},
		"libvirt's, and the caller's": {
			[]qemu.Process{process(7, own+1, "P2", true), process(8, own, "P2", false)},
			8, false, nil,
		},
		"libvirt's, and another user's": {
			[]qemu.Process{process(7, own+1, "P2", true), process(8, own+2, "P2", false)},
			0, true, nil,
		},
		"two that say libvirt's": {
			[]qemu.Process{process(7, own+1, "P2", true), process(8, own+2, "P2", true)},
			0, true, nil,
		},
	} {
		c := chooseNamed("P2", qemu.Running{All: tc.running})
		if c.process.PID != tc.pid || c.isLibvirts != tc.isLibvirts || !errors.Is(c.missing, tc.missing) {
			t.Errorf("%s: process %d, libvirt's %v, missing %v; want %+v",
				name, c.process.PID, c.isLibvirts, c.missing, tc)
		}
	}
}

// TestChoosePID: a process that the target names by its PID must be the guest that it names, as far
// as the process says which it is.
func TestChoosePID(t *testing.T) {
	unread := errors.New("unread")
	for name, tc := range map[string]struct {
		target     nic.Target
		process    qemu.Process
		err        error
		isLibvirts bool
		missing    error
	}{
		"of that name":   {nic.Target{VM: "P2", PID: 7}, process(7, 1, "P2", false), nil, false, nil},
		"without a name": {nic.Target{VM: "P2", PID: 7}, process(7, 1, "", false), nil, false, nil},
		"of another name": {
			nic.Target{VM: "P2", PID: 7},
			process(7, 1, "P3", false), nil,
			false, nic.ErrOtherGuest,
		},
		"libvirt's": {nic.Target{VM: "P2", PID: 7}, process(7, 1, "P2", true), nil, true, nil},
		"libvirt's, with a monitor": {
			nic.Target{VM: "P2", PID: 7, QMP: "/q"},
			process(7, 1, "P2", true), nil, false,
			nil,
		},
		// libvirt does not confirm it
		"libvirt's, another name": {nic.Target{VM: "P2", PID: 7}, process(7, 1, "P3", true), nil, true, nil},
		"that cannot be read":     {nic.Target{VM: "P2", PID: 7, QMP: "/q"}, qemu.Process{}, unread, false, unread},
	} {
		c := choosePID(tc.target, tc.process, tc.err)
		if c.process.PID != tc.process.PID || c.isLibvirts != tc.isLibvirts || !errors.Is(c.missing, tc.missing) {
			t.Errorf("%s: %+v, want %+v", name, c, tc)
		}
	}
}

// TestChooseDomain: of the processes that libvirt may confirm, a target that names a PID means
// that one alone.
func TestChooseDomain(t *testing.T) {
	both := []qemu.Process{process(7, 1, "P2", true), process(8, 2, "P2", true)}
	for pid, want := range map[int]int{0: 2, 7: 1, 8: 1, 9: 0} {
		got := chooseDomain(nic.Target{VM: "P2", PID: pid}, both)
		if len(got) != want || want == 1 && got[0].PID != pid {
			t.Errorf("pid %d: %v", pid, got)
		}
		for count, wantErr := range map[int]error{0: qemu.ErrNotFound, 1: nil, 2: qemu.ErrAmbiguous} {
			if err := onlyOne(both[:count], libvirt.Domain{Name: "P2"}); !errors.Is(err, wantErr) {
				t.Errorf("%d processes: %v, want %v", count, err, wantErr)
			}
		}
	}
}

// TestMayOpen: a NIC's holder may be taken for the guest of that name if root, the caller or
// libvirt runs it.
func TestMayOpen(t *testing.T) {
	const caller = 1000
	for name, tc := range map[string]struct {
		holder qemu.Process
		want   error
	}{
		"root's":         {process(7, 0, "P2", false), nil},
		"the caller's":   {process(7, caller, "P2", false), nil},
		"another user's": {process(7, caller+1, "P2", false), qemu.ErrOtherUser},
		"libvirt's":      {process(7, caller+1, "P2", true), nil},
	} {
		if err := mayOpen(tc.holder, "P2-net0", caller); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	for name, target := range map[string]nic.Target{
		"by its PID":     {VM: "P2", PID: 1},
		"by its monitor": {VM: "P2", QMP: "/q"},
	} {
		if err := MayOpen(target, "P2-net0", os.Getppid()); err != nil {
			t.Errorf("named %s: %v", name, err)
		}
	}
	if err := mayTake(qmp.Peer{PID: 7, UID: caller}, caller); err != nil {
		t.Errorf("the caller's own listener: %v", err)
	}
	if err := mayTake(qmp.Peer{PID: 7, UID: 0}, caller); !errors.Is(err, qemu.ErrOtherUser) {
		t.Errorf("root's listener: %v", err)
	}
}

// TestChooseLibvirt: the libvirt that is named is asked, else the caller's own for the caller's
// guests, else the machine's.
func TestChooseLibvirt(t *testing.T) {
	own, others := process(7, 1000, "P2", true), process(8, 64055, "P2", true)
	for name, tc := range map[string]struct {
		named  string
		procs  []qemu.Process
		caller int
		want   libvirt.Dialer
	}{
		"a socket":             {"/run/virt.sock", []qemu.Process{own}, 1000, libvirt.Dialer{Path: "/run/virt.sock"}},
		"a URI":                {libvirt.System, []qemu.Process{own}, 1000, libvirt.Dialer{URI: libvirt.System}},
		"the caller's guest":   {"", []qemu.Process{others, own}, 1000, libvirt.Dialer{URI: libvirt.Session}},
		"the machine's guest":  {"", []qemu.Process{others}, 1000, libvirt.Dialer{}},
		"root's guest":         {"", []qemu.Process{process(7, 0, "P2", true)}, 0, libvirt.Dialer{}},
		"a domain that is off": {"", nil, 1000, libvirt.Dialer{}},
	} {
		if got := chooseLibvirt(tc.named, tc.procs, tc.caller); got.URI != tc.want.URI || got.Path != tc.want.Path {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// TestFindByMonitor: a target that names a monitor's socket alone has no process until its listener
// is known, whatever else runs.
func TestFindByMonitor(t *testing.T) {
	g, err := (&Finder{}).Find(nic.Target{VM: "P2", QMP: "/nowhere"})
	if err != nil || g.PID() != 0 || g.Missing() != nil || g.IsLibvirts() || g.running != nil {
		t.Errorf("%+v, %v", g, err)
	}
}

// TestOpenMissing: a guest that has ended is missing, also if its NIC was handed over by libvirt.
func TestOpenMissing(t *testing.T) {
	for _, via := range []nic.Via{"", nic.ViaLibvirt, nic.ViaMonitor} {
		g := &Found{target: nic.Target{VM: "P2"}, missing: qemu.ErrNotFound}
		if _, err := (&Finder{}).Open(t.Context(), g, via); !errors.Is(err, qemu.ErrNotFound) {
			t.Errorf("via %q: %v", via, err)
		}
	}
}
