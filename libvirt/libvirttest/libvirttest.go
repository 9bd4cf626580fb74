// Package libvirttest runs a libvirtd for one test: with its own /etc, /run and /var, in the test's
// network namespace, and in a PID namespace whose end also ends its guests.
package libvirttest

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

// Private holds the functions of private.sh, for the beginning of a shell script.
//
//go:embed private.sh
var Private string

// script starts libvirtd, again each time it exits. Its arguments are the directory for the
// sockets, lines for libvirtd.conf, a prefix of the command, and lines for qemu.conf. The shell
// stays as the first process of the PID namespace and reaps orphaned children of libvirtd: libvirtd
// waits for them by kill(2), for up to 40 s.
const script = `set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
private_dirs
private_conf "unix_sock_dir = \"$1\"
$2" "$4"
while :; do
	$3 libvirtd </dev/null || :
	sleep 0.1
done
`

// startup bounds the start of libvirtd, which takes 0.2 s on an idle machine, and over 30 s beside
// a load of 32.
const startup = 2 * time.Minute

// Daemon is a running libvirtd.
type Daemon struct {
	tb   testing.TB
	dir  string
	uri  string // without the socket
	log  string
	init *os.Process // the shell
}

// Require skips the test where libvirtd, virsh or the privilege to run them is missing.
func Require(tb testing.TB) {
	tb.Helper()
	nstest.Require(tb, "root", os.Geteuid() == 0, "run it as root")
	for _, program := range []string{"libvirtd", "virsh", "qemu-system-x86_64"} {
		_, err := exec.LookPath(program)
		nstest.Require(tb, "libvirt",
			err == nil, program+
				" is missing: apt install --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86")
	}
}

// Start runs libvirtd in ns until the test ends. conf are lines for libvirtd.conf.
func Start(tb testing.TB, ns *netns.NS, conf ...string) *Daemon {
	tb.Helper()
	dir := directory(tb)
	return start(tb, ns, &Daemon{tb: tb, dir: dir, uri: "qemu+unix:///system"}, dir, strings.Join(conf, "\n"), "")
}

// StartPermissive runs a libvirtd whose guests may drop root's privileges themselves (QEMU's
// -runas). Otherwise libvirt drops them before it starts QEMU, or its sandbox forbids it.
func StartPermissive(tb testing.TB, ns *netns.NS) *Daemon {
	tb.Helper()
	dir := directory(tb)
	return start(tb, ns, &Daemon{tb: tb, dir: dir, uri: "qemu+unix:///system"}, dir, "", "",
		"clear_emulator_capabilities = 0\nseccomp_sandbox = 0")
}

// StartSession runs the libvirtd of an ordinary user, and also returns that user's XDG_RUNTIME_DIR.
func StartSession(tb testing.TB, ns *netns.NS) (d *Daemon, runtimeDir string) {
	tb.Helper()
	const nobody = 65534
	dir := directory(tb)
	if err := os.Chown(dir, nobody, nobody); err != nil {
		tb.Fatal(err)
	}
	d = &Daemon{tb: tb, dir: filepath.Join(dir, "libvirt"), uri: "qemu+unix:///session"}
	as := fmt.Sprintf("setpriv --reuid %d --regid %[1]d --clear-groups env HOME=%s XDG_RUNTIME_DIR=%[2]s", nobody, dir)
	return start(tb, ns, d, dir, "", as), dir
}

func directory(tb testing.TB) string {
	tb.Helper()
	Require(tb)
	dir, err := os.MkdirTemp("", "libvirt") // short: a socket's path has at most 107 bytes
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start runs the script with its arguments, for d.
func start(tb testing.TB, ns *netns.NS, d *Daemon, args ...string) *Daemon {
	tb.Helper()
	log, err := os.CreateTemp(args[0], "log")
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("nsenter", append([]string{"--net=" + ns.Path(), "sh", "-s"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(Private+script), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:    syscall.SIGKILL,
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS,
	}
	ended, err := startOnThread(cmd)
	if err != nil {
		tb.Fatal(err)
	}
	d.init, d.log = cmd.Process, log.Name()
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	d.Await()
	return d
}

// startOnThread starts a command from a thread that lives until the end of the test: the kernel
// kills the command when that thread ends (PR_SET_PDEATHSIG).
func startOnThread(cmd *exec.Cmd) (ended <-chan struct{}, err error) {
	started, done := make(chan error), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	return done, <-started
}

// Await waits until libvirtd answers.
func (d *Daemon) Await() {
	d.tb.Helper()
	answers := false
	defer func() {
		if !answers {
			d.tb.Logf("libvirtd said:\n%s", d.Log())
		}
	}()
	nstest.Eventually(d.tb, startup, "libvirtd answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), startup)
		defer cancel()
		_, err := d.try(ctx, "version")
		answers = err == nil
		return answers
	})
}

// Socket returns the path of its socket; the one for read-only connections has the suffix "-ro".
func (d *Daemon) Socket() string { return filepath.Join(d.dir, "libvirt-sock") }

// URI returns the connection URI for virsh.
func (d *Daemon) URI() string { return d.uri + "?socket=" + d.Socket() }

// Log returns the daemon's output so far.
func (d *Daemon) Log() string {
	log, _ := os.ReadFile(d.log)
	return string(log)
}

// Try runs virsh against it and returns the output.
func (d *Daemon) Try(args ...string) (string, error) { return d.try(context.Background(), args...) }

func (d *Daemon) try(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", d.URI()}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Virsh is Try that fails the test on an error.
func (d *Daemon) Virsh(args ...string) string {
	d.tb.Helper()
	out, err := d.Try(args...)
	if err != nil {
		d.tb.Fatalf("virsh %s: %v: %s\nlibvirtd's output:\n%s", strings.Join(args, " "), err, out, d.Log())
	}
	return out
}

// Define defines a domain from its XML.
func (d *Daemon) Define(xml string) {
	d.tb.Helper()
	d.Virsh("define", d.file(xml))
}

// Create starts a transient domain from its XML, with paused CPUs.
func (d *Daemon) Create(xml string) {
	d.tb.Helper()
	d.Virsh("create", "--paused", d.file(xml))
}

func (d *Daemon) file(text string) string {
	d.tb.Helper()
	name := filepath.Join(d.dir, "domain.xml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		d.tb.Fatal(err)
	}
	return name
}

// PID returns libvirtd's process id. If the process is killed, a new one starts: see Await.
func (d *Daemon) PID() int {
	d.tb.Helper()
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", d.init.Pid))
	for child := range strings.FieldsSeq(string(children)) {
		if comm, _ := os.ReadFile("/proc/" + child + "/comm"); string(comm) == "libvirtd\n" {
			if pid, err := strconv.Atoi(child); err == nil {
				return pid
			}
		}
	}
	d.tb.Fatalf("libvirtd does not run; its output:\n%s", d.Log())
	return 0
}

// QEMU returns the process id of a domain's QEMU.
func (d *Daemon) QEMU(domain string) int {
	d.tb.Helper()
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		line, _ := os.ReadFile(name)
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err == nil && strings.Contains(string(line), "\x00guest="+domain+",") && d.owns(pid) {
			return pid
		}
	}
	d.tb.Fatalf("no QEMU of domain %s", domain)
	return 0
}

// owns reports whether a process is in the daemon's PID namespace.
func (d *Daemon) owns(pid int) bool {
	ours, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", d.init.Pid))
	theirs, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return err == nil && ours == theirs
}
