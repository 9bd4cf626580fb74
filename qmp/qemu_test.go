package qmp

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

// qemu is a QEMU whose processors never start.
type qemu struct {
	cmd  *exec.Cmd
	path string // of its monitor
}

// startQEMU starts one, which ends with the test.
func startQEMU(t *testing.T, machine string, args ...string) *qemu {
	t.Helper()
	return startQEMUOf(t, "x86_64", append([]string{"-machine", machine + ",accel=tcg", "-m", "64"}, args...)...)
}

// packages are Debian's of the QEMUs that tests start.
var packages = map[string]string{"x86_64": "x86", "aarch64": "arm", "arm": "arm", "ppc64": "ppc"}

// startQEMUOf is startQEMU for one that emulates that architecture.
func startQEMUOf(t *testing.T, arch string, args ...string) *qemu {
	t.Helper()
	bin, err := exec.LookPath("qemu-system-" + arch)
	nstest.Require(t, "qemu", err == nil, "apt-get install qemu-system-"+cmp.Or(packages[arch], "misc"))
	dir, err := os.MkdirTemp("", "qmp") // t.TempDir may hold commas, which end a QEMU option
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	q := &qemu{path: filepath.Join(dir, "qmp.sock")}
	q.cmd = exec.Command(bin, append([]string{
		"-S", "-nodefaults", "-no-user-config", "-display", "none",
		"-qmp", "unix:" + q.path + ",server=on,wait=off",
	}, args...)...)
	q.cmd.Dir = dir
	var stderr strings.Builder
	q.cmd.Stderr = &stderr
	q.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}

	// Pdeathsig strikes when the starting thread ends, so that one must stay.
	started, release := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- q.cmd.Start()
		<-release
	}()
	if err := <-started; err != nil {
		close(release)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = q.cmd.Process.Kill()
		_ = q.cmd.Wait()
		close(release)
		if stderr.Len() > 0 {
			t.Logf("QEMU: %s", stderr.String())
		}
	})
	nstest.Eventually(t, 30*time.Second, "the monitor's socket", func() bool {
		_, err := os.Stat(q.path)
		return err == nil
	})
	return q
}

func (q *qemu) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := q.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// stop halts QEMU, and waits until it stands.
func (q *qemu) stop(t *testing.T) {
	t.Helper()
	q.signal(t, unix.SIGSTOP)
	nstest.Eventually(t, 30*time.Second, "QEMU to stop", func() bool {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", q.cmd.Process.Pid))
		_, state, _ := strings.Cut(string(stat), ") ")
		return strings.HasPrefix(state, "T")
	})
}

// dial connects to a monitor whose socket may have been bound but not listened on yet.
func (q *qemu) dial(t *testing.T) *Conn {
	t.Helper()
	var c *Conn
	nstest.Eventually(t, 30*time.Second, "the monitor", func() bool {
		var err error
		c, err = Dial(within(t, 20*time.Second), q.path)
		return err == nil
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// newTap makes a tap in ns and opens its queues.
func newTap(t *testing.T, ns *netns.NS, name string, queues int) (files []*os.File) {
	t.Helper()
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	for range queues {
		err := ns.Do(func() error {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), name)
			files = append(files, f)
			t.Cleanup(func() { _ = f.Close() })
			ifr.SetUint16(flags)
			return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		})
		if err != nil {
			t.Fatalf("make tap %s: %v", name, err)
		}
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func hasLink(t *testing.T, ns *netns.NS, name string) bool {
	t.Helper()
	links, err := nstest.Handle(t, ns).LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().Name == name {
			return true
		}
	}
	return false
}

// wantGone fails unless nobody holds the tap any more.
func wantGone(t *testing.T, ns *netns.NS, name string) {
	t.Helper()
	nstest.Eventually(t, 30*time.Second, "link "+name+" to go", func() bool { return !hasLink(t, ns, name) })
}

// netdevs asks the human monitor, the only one that lists them.
func netdevs(t *testing.T, c *Conn) string {
	t.Helper()
	var text string
	if err := c.Execute(within(t, 20*time.Second), "human-monitor-command",
		map[string]any{"command-line": "info network"}, &text); err != nil {
		t.Fatal(err)
	}
	return text
}

func qomValue(ctx context.Context, c *Conn, id, property string) (value any, err error) {
	err = c.qomGet(ctx, peripheral+"/"+id, property, &value)
	return value, err
}
