package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// attaches is how many NICs each guest gets: machine pc has slots for 29.
const attaches = 20

// BenchmarkAttach attaches NICs on one bridge to paused guests (-S) and measures each process from
// its start to its end: `vmnet attach`; ip(8) and a monitor client in this process; and for libvirt
// guests, `vmnet attach` and `virsh attach-interface`. `vmnet version` shows how much of that is
// the start of a process.
func BenchmarkAttach(b *testing.B) {
	runtime.LockOSThread() // never unlocked: it and what it starts are in the lab's netns
	l := newLab(b)
	ways := []*Way{
		{Name: "vmnet attach", Do: l.vmnet()},
		{Name: "vmnet version", Do: func(int) (time.Duration, error) { return timed(l.program, "version") }},
		{Name: "by hand", Do: l.byHand()},
	}
	_, noDaemon := exec.LookPath("libvirtd")
	_, noClient := exec.LookPath("virsh")
	if Available(b, "libvirt", noDaemon == nil && noClient == nil, "apt install libvirt-daemon libvirt-clients") {
		ways = append(ways, l.libvirt()...)
	}
	WarmUp(b, attaches, ways...)
	Turns(b, attaches, ways...)
	Report(b, ways...)
}

// lab is a netns with br0, which the calling thread has entered.
type lab struct {
	*testing.B
	ns      *netns.NS
	dir     string
	program string // vmnet
}

func newLab(b *testing.B) *lab {
	testvm.Require(b)
	l := &lab{B: b, ns: nstest.New(b), dir: b.TempDir()}
	l.program = filepath.Join(l.dir, "vmnet")
	if _, err := timed("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o",
		l.program, "vmnet/cmd/vmnet"); err != nil {
		b.Fatal(err)
	}
	h, err := bridge.Open(l.ns.Path())
	if err == nil {
		err = h.Create(bridge.Config{Name: "br0"})
		h.Close()
	}
	if err == nil {
		err = unix.Setns(int(l.ns.Handle()), unix.CLONE_NEWNET)
	}
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// guest starts a QEMU with paused processors, and returns its name and monitor.
func (l *lab) guest(kind string) (name, monitor string) {
	name = kind + "-" + strconv.Itoa(os.Getpid())
	vm := testvm.StartT(l.B, testvm.Config{Name: name, Paused: true, Netns: l.ns.Path(), Logf: func(string, ...any) {}})
	return name, vm.QMP
}

func (l *lab) vmnet() func(int) (time.Duration, error) {
	name, _ := l.guest("own")
	return func(i int) (time.Duration, error) {
		return timed(l.program, "attach", "--vm", name, "--bridge", "br0", "--nic", fmt.Sprintf("net%d", i))
	}
}

// timed runs a command, from exec to its exit.
func timed(args ...string) (time.Duration, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", console.Quote(args), err, out)
	}
	return took, nil
}
