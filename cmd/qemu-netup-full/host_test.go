package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
	"vmnet/tapmgr"
)

// makeBridges makes bridges in a netns.
func makeBridges(tb testing.TB, ns *netns.NS, names ...string) {
	tb.Helper()
	for _, name := range names {
		makeBridge(tb, ns, bridge.Config{Name: name})
	}
}

func makeBridge(tb testing.TB, ns *netns.NS, cfg bridge.Config) {
	tb.Helper()
	h, err := bridge.Open(ns.Path())
	if err != nil {
		tb.Fatal(err)
	}
	defer h.Close()
	if err := h.Create(cfg); err != nil {
		tb.Fatal(err)
	}
}

// hostAddr is br0's.
const hostAddr = "10.7.0.1"

// host is a netns with br0 and br1, of which bridge.conf allows br0, where qemu-netup is installed.
type host struct {
	*installation
	ns *netns.NS
	nl *rtnl.Conn
	*tapmgr.Manager
	vmnet string // the program, where withVMNet has installed it
}

func newHost(tb testing.TB) *host {
	tb.Helper()
	h := &host{installation: install(tb), ns: nstest.New(tb)}
	h.config("bridge.conf", "allow br0\n")
	h.own("run")
	var err error
	if h.nl, err = rtnl.Open(h.ns); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(h.nl.Close)
	if h.Manager, err = tapmgr.Open(h.ns.Path()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(h.Manager.Close)
	makeBridge(tb, h.ns, bridge.Config{Name: "br0", Addresses: []netip.Prefix{netip.MustParsePrefix(hostAddr + "/24")}})
	makeBridges(tb, h.ns, "br1")
	return h
}

// withVMNet installs vmnet beside qemu-netup.
func (h *host) withVMNet() *host {
	h.Helper()
	h.vmnet = h.path("vmnet")
	testprogram.Install(h, h.vmnet, testprogram.Build(h, "vmnet/cmd/vmnet"))
	return h
}

// own makes a directory that belongs to the user nobody.
func (i *installation) own(name string) string {
	i.Helper()
	dir := i.path(name)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, nobody, nobody)); err != nil {
		i.Fatal(err)
	}
	return dir
}

// copy copies a file.
func (i *installation) copy(to, from string, mode os.FileMode) {
	i.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, mode)
	}
	if err != nil {
		i.Fatal(err)
	}
}

// policy writes policy.yaml with these rules, a line each.
func (i *installation) policy(rules ...string) {
	i.Helper()
	i.config("policy.yaml", "rules:\n- "+strings.Join(rules, "\n- ")+"\n")
}

// reconfigure makes qemu-netup's file of another kind: a mode, and file capabilities or none.
func (i *installation) reconfigure(mode os.FileMode, caps []byte) {
	i.Helper()
	err := os.Chmod(i.program, mode)
	if err == nil && caps != nil {
		err = unix.Setxattr(i.program, "security.capability", caps, 0)
	}
	if err != nil {
		i.Fatal(err)
	}
}

// command prepares a program that the user nobody runs.
func (h *host) command(program string, args ...string) *exec.Cmd {
	cmd := h.as(nobody, args...)
	cmd.Path, cmd.Args[0] = program, program
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR=" + h.path("run")}
	cmd.WaitDelay = 5 * time.Second // for what outlives it and holds its output open
	return cmd
}

// result is how a program ended.
type result struct {
	stdout, stderr string
	code           int // -1: by a signal
}

// do runs a command to its end in the host's netns. None may hang.
func (h *host) do(cmd *exec.Cmd) (r result) {
	h.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := h.ns.Do(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		timer := time.AfterFunc(nstest.Patience(30*time.Second), func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait()
		return nil
	})
	if err != nil {
		h.Errorf("%s: %v", cmd.Path, err)
		return result{code: -1}
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// nobodys runs qemu-netup as nobody.
func (h *host) nobodys(args ...string) result {
	h.Helper()
	return h.do(h.command(h.program, args...))
}

// nobodysVMNet runs vmnet as nobody.
func (h *host) nobodysVMNet(args ...string) result {
	h.Helper()
	return h.do(h.command(h.vmnet, args...))
}

// ok demands success, and that stdout has these texts.
func (h *host) ok(r result, wants ...string) {
	h.Helper()
	for _, want := range wants {
		if !strings.Contains(r.stdout, want) {
			h.Errorf("stdout lacks %q:\n%s", want, r.stdout)
		}
	}
	if r.code != 0 {
		h.Errorf("exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// fails demands a failure, of which stderr tells these texts, and each only once.
func (h *host) fails(r result, code int, wants ...string) {
	h.Helper()
	for _, want := range wants {
		if n := strings.Count(r.stderr, want); n != 1 {
			h.Errorf("stderr has %q %d times:\n%s", want, n, r.stderr)
		}
	}
	if r.code != code {
		h.Errorf("exit status %d, want %d\n%s%s", r.code, code, r.stdout, r.stderr)
	}
}

// task is a program that runs beside the test, until it is killed or the test ends.
type task struct {
	*exec.Cmd
	done chan struct{}
}

// start starts a command in the host's netns. The thread stays: Pdeathsig is about it. If the test
// fails and the command has ended by itself, the log says how.
func (h *host) start(cmd *exec.Cmd) *task {
	h.Helper()
	t := &task{cmd, make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(t.done)
		err := h.ns.Do(func() error {
			err := cmd.Start()
			started <- err
			if err == nil {
				_ = cmd.Wait()
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		ended := t.hasEnded()
		t.kill()
		if ended && h.Failed() {
			h.Logf("%s: %v", cmd.Path, cmd.ProcessState)
		}
	})
	return t
}

func (t *task) hasEnded() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *task) kill() {
	_ = t.Process.Kill()
	<-t.done
}

func (h *host) context(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), nstest.Patience(d))
	h.Cleanup(cancel)
	return ctx
}

// await waits until there is no error any more.
func (h *host) await(what string, try func() error) {
	h.Helper()
	var err error
	defer func() {
		if err != nil {
			h.Log(err)
		}
	}()
	nstest.Eventually(h, 20*time.Second, what, func() bool { err = try(); return err == nil })
}

// gone demands that soon no link of that name is there.
func (h *host) gone(name string) {
	h.Helper()
	h.await("link "+name+" is still there", func() error {
		if _, err := h.nl.Link(name); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, fs.ErrExist)
		}
		return nil
	})
}

// taps counts the taps that are there.
func (h *host) taps() int {
	h.Helper()
	links, err := h.nl.Links("tun", 0)
	if err != nil {
		h.Fatal(err)
	}
	return len(links)
}

// far is another netns: its interface far0 and the host's eth0 are the ends of one cable.
func (h *host) far(addr string) *netns.NS {
	h.Helper()
	far := nstest.New(h)
	h.ip(h.ns, "link", "add", "eth0", "type", "veth", "peer", "name", "far0", "netns", far.Path())
	h.ip(h.ns, "link", "set", "eth0", "up")
	h.ip(far, "link", "set", "far0", "up")
	h.ip(far, "addr", "add", addr+"/24", "dev", "far0")
	return far
}

func (h *host) ip(ns *netns.NS, args ...string) {
	h.Helper()
	err := ns.Do(func() error {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return errors.Join(err, errors.New(string(out)))
		}
		return nil
	})
	if err != nil {
		h.Fatalf("ip %s: %v", strings.Join(args, " "), err)
	}
}

// plainQEMU is one that the user nobody has started without qemu-netup: its processors stand still,
// so it gives no device back, and its monitor listens.
func (h *host) plainQEMU(name string, args ...string) *task {
	h.Helper()
	nstest.Require(h, "qemu", available(qemuProgram), "install QEMU")
	socket := filepath.Join(h.path("run"), name+".qmp")
	line := append([]string{
		"-name", "guest=" + name, "-S", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "32", "-display", "none",
		"-qmp", "unix:" + socket + ",server=on,wait=off",
	}, args...)
	program, _ := exec.LookPath(qemuProgram)
	cmd := h.command(program, line...)
	t := h.start(cmd)
	h.await("QEMU's monitor", func() error { return listens(socket) })
	return t
}

const qemuProgram = "qemu-system-x86_64"

func available(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// listens reports whether a process listens on a socket.
func listens(path string) error {
	conn, err := net.Dial("unix", path)
	if err == nil {
		err = conn.Close()
	}
	return err
}
