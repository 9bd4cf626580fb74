package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
)

// helperTurns is the number of turns of each way: one start takes a few milliseconds, and other
// processes on the machine disturb some of them.
const helperTurns = 300

// BenchmarkBridgeHelper lets QEMU's own bridge helper and qemu-netup create taps on one bridge. It
// measures from fork until the fd is received, and in the same turns until the helper has exited,
// for which QEMU waits too (net_bridge_run_helper in net/tap.c). An empty Go program and /bin/true
// show the cost of starting a process.
func BenchmarkBridgeHelper(b *testing.B) {
	for _, user := range []struct {
		name string
		uid  int
	}{{"nobody", 65534}, {"root", 0}} {
		b.Run(user.name, func(b *testing.B) {
			h := newHelperLab(b, user.uid)
			helpers := []helper{{"qemu-netup", h.plain}, {"qemu-netup with a limit", h.limited}}
			if h.qemu != "" {
				helpers = slices.Insert(helpers, 0, helper{"qemu-bridge-helper", h.qemu})
			}
			if user.uid != 0 { // root has the privilege already
				for _, helper := range slices.Clone(helpers) {
					helpers = append(helpers, h.withCapability(helper))
				}
			}
			var ways, ended []*Way
			for _, helper := range helpers {
				first, last := h.tap(helper)
				ways, ended = append(ways, first), append(ended, last)
			}
			ways = append(
				ways,
				&Way{Name: "empty Go program", Do: h.run(h.empty)},
				&Way{Name: "/bin/true", Do: h.run("/bin/true")})
			compare(b, ways)
			Report(b, ended...)
		})
	}
}

// BenchmarkLaunch measures what qemu-netup adds to the start of a program, until the program's
// first output. The kernel's work at the end of the program and its NICs is not counted.
func BenchmarkLaunch(b *testing.B) {
	h := newHelperLab(b, 65534)
	nics := func(n int) func(int) (time.Duration, error) {
		args := []string{"--vm", "bench", "--bridge", "br0"}
		for range n - 1 {
			args = append(args, "--next-nic", "--bridge", "br0")
		}
		return h.run(h.plain, append(args, "--vmm", "env", "--", "/bin/echo", "here")...)
	}
	compare(b, []*Way{
		{Name: "/bin/echo", Do: h.run("/bin/echo", "here")},
		{Name: "1 NIC", Do: nics(1)},
		{Name: "4 NICs", Do: nics(4)},
	})
}

// warmUp is the number of a turn that does not count: the first reads the programs from disk.
const warmUp = -1

func compare(b *testing.B, ways []*Way) {
	b.Helper()
	WarmUp(b, warmUp, ways...)
	Turns(b, helperTurns, ways...)
	Report(b, ways...)
}

// helperLab is a netns with br0 and a mount namespace with an /etc of its own, which the calling
// thread has entered, and programs that are installed setuid root.
type helperLab struct {
	*testing.B
	dir string
	uid int // of the user that starts them

	qemu    string // empty if there is none
	plain   string // qemu-netup without policy.yaml
	limited string // qemu-netup with one that limits the number of NICs
	empty   string
}

func newHelperLab(b *testing.B, uid int) *helperLab {
	nstest.Require(b, "root", os.Geteuid() == 0, "run it as root")
	h := &helperLab{B: b, dir: b.TempDir(), uid: uid}
	h.must(errors.Join(os.Chmod(filepath.Dir(h.dir), 0o755), os.Chmod(h.dir, 0o755)))
	h.write("bridge.conf", "allow br0\n")
	h.write("policy.yaml", "rules:\n- {users: [\"*\"], bridges: [br0], nics: 4}\n")
	h.write("empty.go", "package main\n\nfunc main() {}\n")
	h.plain = h.netup("plain", filepath.Join(h.dir, "none.yaml"))
	h.limited = h.netup("limited", filepath.Join(h.dir, "policy.yaml"))
	h.empty = h.build("empty", filepath.Join(h.dir, "empty.go"))
	h.qemu = h.copyHelper()
	ns := nstest.New(b)
	host, err := bridge.Open(ns.Path())
	h.must(err)
	defer host.Close()
	h.must(host.Create(bridge.Config{Name: "br0"}))
	h.enter(ns)
	return h
}

func (h *helperLab) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *helperLab) write(name, text string) {
	h.must(os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o644))
}

func (h *helperLab) build(name, source string, variables ...string) string {
	path := filepath.Join(h.dir, name)
	testprogram.Install(h, path, testprogram.Build(h, source, variables...))
	return path
}

func (h *helperLab) netup(name, policyPath string) string {
	full := filepath.Join(h.dir, name+"-full")
	variables := []string{
		"main.policyPath=" + policyPath, "main.aclPath=" + filepath.Join(h.dir, "bridge.conf"), "main.fullPath=" + full,
	}
	h.build(name+"-full", "vmnet/cmd/qemu-netup-full", variables...)
	path := h.build(name, "vmnet/cmd/qemu-netup", variables...)
	h.must(os.Chmod(path, 0o755|os.ModeSetuid))
	return path
}

// withCapability is a helper with CAP_NET_ADMIN as a file capability instead of setuid root.
func (h *helperLab) withCapability(of helper) helper {
	program, err := os.ReadFile(of.program)
	path := of.program + "-cap"
	h.must(errors.Join(err, os.WriteFile(path, program, 0o755)))
	// struct vfs_cap_data of linux/capability.h, revision 2: permitted and effective.
	const effective, permitted = 1, 1 << (unix.CAP_NET_ADMIN - 8) // of the second byte
	caps := []byte{effective, 0, 0, 2, 0, permitted, 0, 0, 19: 0}
	h.must(unix.Setxattr(path, "security.capability", caps, 0))
	return helper{of.name + ", setcap", path}
}

// copyHelper installs QEMU's helper in the same place as ours: its own directory may be mounted
// nosuid.
func (h *helperLab) copyHelper() string {
	for _, path := range []string{"/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper"} {
		program, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		copied := filepath.Join(h.dir, "qemu-bridge-helper")
		h.must(os.WriteFile(copied, program, 0o755))
		h.must(os.Chmod(copied, 0o755|os.ModeSetuid))
		return copied
	}
	Available(h.B, "qemu-bridge-helper", false, "apt install qemu-system-common")
	return ""
}

// enter moves the calling thread, and what it starts, into the netns and a new mount namespace:
// with an /etc that has the files that C programs read, and QEMU's ACL file.
func (h *helperLab) enter(ns *netns.NS) {
	runtime.LockOSThread() // never unlocked
	etc := filepath.Join(h.dir, "etc")
	h.must(errors.Join(os.MkdirAll(filepath.Join(etc, "qemu"), 0o755),
		os.Link(filepath.Join(h.dir, "bridge.conf"), filepath.Join(etc, "qemu/bridge.conf"))))
	for _, name := range []string{"ld.so.cache", "passwd", "group", "nsswitch.conf"} {
		if text, err := os.ReadFile(filepath.Join("/etc", name)); err == nil {
			h.must(os.WriteFile(filepath.Join(etc, name), text, 0o644))
		}
	}
	node := filepath.Join(h.dir, "tun") // with mode 0666, as on most machines
	var st unix.Stat_t
	h.must(unix.Stat("/dev/net/tun", &st))
	h.must(errors.Join(unix.Mknod(node, unix.S_IFCHR|0o666, int(st.Rdev)), unix.Chmod(node, 0o666)))
	h.must(errors.Join(
		unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(etc, "/etc", "", unix.MS_BIND, ""),
		unix.Mount(node, "/dev/net/tun", "", unix.MS_BIND, ""),
		unix.Setns(int(ns.Handle()), unix.CLONE_NEWNET)))
}

// command returns a command that the lab's user runs.
func (h *helperLab) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(h.uid)},
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd
}

// run starts a program and waits for its first output, or for its end.
func (h *helperLab) run(program string, args ...string) func(int) (time.Duration, error) {
	return func(int) (time.Duration, error) {
		cmd := h.command(program, args...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		said, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		start := time.Now()
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		_, _ = said.Read(make([]byte, 100))
		took := time.Since(start)
		if err := cmd.Wait(); err != nil {
			return 0, fmt.Errorf("%w: %s", err, stderr.String())
		}
		return took, nil
	}
}

// helper is a program with the arguments of qemu-bridge-helper.
type helper struct{ name, program string }

// tap does what QEMU does. The second way takes no turns of its own: it is the total time of the
// first one's.
func (h *helperLab) tap(helper helper) (received, ended *Way) {
	ended = &Way{Name: helper.name + " to its end"}
	received = &Way{Name: helper.name + " to the fd", Do: func(i int) (time.Duration, error) {
		took, end, err := h.start(helper.program)
		if i != warmUp {
			ended.took = append(ended.took, end)
		}
		return took, err
	}}
	return received, ended
}

// start returns when the helper's fd arrived, and when the helper had exited.
func (h *helperLab) start(program string) (received, ended time.Duration, err error) {
	sock, theirs, err := fdpass.Pair() // QEMU uses a SOCK_STREAM, which makes no difference here
	if err != nil {
		return 0, 0, err
	}
	defer sock.Close()
	cmd := h.command(program, "--use-vnet", "--fd=3", "--br=br0")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr // a pipe would take a goroutine's time
	start := time.Now()
	err = cmd.Start()
	_ = theirs.Close() // otherwise its end is not noticed
	if err != nil {
		return 0, 0, err
	}
	_, files, err := sock.Receive(1)
	received = time.Since(start)
	err = errors.Join(err, cmd.Wait())
	ended = time.Since(start)
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("%d fds", len(files))
	}
	fdpass.CloseAll(files) // the kernel removes the tap now
	return received, ended, err
}
