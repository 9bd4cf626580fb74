package tapmgr_test

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// ownQEMU is a QEMU of which the test chooses every word.
type ownQEMU struct {
	program string   // empty: qemu-system-x86_64
	args    []string // behind the common ones; %s is the guest's name, @ the directory
	files   []*os.File
	running bool // its processors run
	daemon  bool // it leaves the process that was started
}

// dir returns a new directory with a short path: a socket's path has no room for t.TempDir.
func (h *host) dir() string {
	h.Helper()
	dir, err := os.MkdirTemp("", "own")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startOwn starts one in its directory. It ends with the test.
func (h *host) startOwn(q ownQEMU, dir string) (vm string) {
	h.Helper()
	vm = h.name("own")
	program := q.program
	if program == "" {
		program = "qemu-system-x86_64"
	}
	path, err := exec.LookPath(program)
	nstest.Require(h, "qemu", err == nil, "apt-get install qemu-system-x86")
	var args []string
	if filepath.Base(program) == "timeout" {
		args, q.args = append(args, q.args[:2]...), q.args[2:]
	}
	args = append(args, "-M", "pc,accel=tcg", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none", "-L",
		"/usr/share/qemu", "-L", "/usr/share/seabios")
	if !q.running {
		args = append(args, "-S")
	}
	args = append(args, q.args...)
	for i, a := range args {
		args[i] = strings.ReplaceAll(strings.ReplaceAll(a, "%s", vm), "@", dir)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stderr, cmd.ExtraFiles = dir, os.Stderr, q.files
	modules, _ := filepath.Glob("/usr/lib/*-linux-*/qemu") // which a copy of the program does not find
	cmd.Env = append(os.Environ(), "PWD="+dir, "QEMU_MODULE_DIR="+strings.Join(modules, ""))
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _, _ = cmd.Process.Signal(syscall.SIGTERM), cmd.Wait() })
	if q.daemon {
		h.Cleanup(func() { h.endDaemon(filepath.Join(dir, "pid")) })
	}
	return vm
}

func (h *host) endDaemon(pidfile string) {
	h.Helper()
	text, err := os.ReadFile(pidfile)
	if err != nil {
		h.Error(err)
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
		h.Errorf("end %q: %v", text, err)
	}
}

// attachOwn attaches as soon as the guest can be found.
func (h *host) attachOwn(spec nic.Spec) {
	h.Helper()
	var err error
	defer func() {
		if err != nil {
			h.Log(err)
		}
	}()
	nstest.Eventually(h, 30*time.Second, "a guest of that name is found, and attached to", func() bool {
		_, err = h.Attach(h.context(20*time.Second), spec)
		return err == nil
	})
}

// worksWithoutItsPath has a guest get a NIC, be looked at and lose it, by its name alone.
func (h *host) worksWithoutItsPath(vm string, spec nic.Spec) {
	h.Helper()
	spec.Target.VM, spec.NIC, spec.Bridge, spec.Vhost = vm, "net0", "br0", nic.VhostOff
	h.attachOwn(spec)
	if diff := h.check(); len(diff) != 0 {
		h.Errorf("check %+v", diff)
	}
	h.reconciled()
	details, err := h.Show(h.context(10*time.Second), vm)
	if err != nil || len(details) != 1 || details[0].Guest == nil || !details[0].Guest.Plugged {
		h.Errorf("show %+v, %v: want the guest's view", details, err)
	}
	gone := tapmgr.DetachSpec{Target: nic.Target{VM: vm}, NIC: "net0", Force: true}
	if res, err := h.Detach(h.context(20*time.Second), gone); err != nil || !res.Changed {
		h.Errorf("detach %+v, %v", res, err)
	}
	name, _ := nic.InterfaceName(vm, "net0")
	h.gone(name)
}

const config = `[chardev "q"]
  backend = "socket"
  path = "l"
  server = "on"
  wait = "off"
[mon "m"]
  chardev = "q"
  mode = "control"
`

// TestLiveMonitorsOfEveryForm: in whatever form a QEMU gets its monitor, the guest's name is all
// that is needed.
func TestLiveMonitorsOfEveryForm(t *testing.T) {
	const named = "guest=%s"
	for name, q := range map[string]ownQEMU{
		"chardev, relative": {args: []string{
			"-name", named, "-chardev", "socket,id=q,path=l,server=on,wait=off",
			"-qmp", "chardev:q",
		}},
		"qmp, relative": {args: []string{"-name", named, "-qmp", "unix:k,server=on,wait=off"}},
		"pretty":        {args: []string{"-name", named, "-qmp-pretty", "unix:@/p,server=on,wait=off"}},
		"all in a file": {args: []string{"-readconfig", "rc"}},
		"domxml-to-native": {args: []string{
			"-name", named + ",debug-threads=on", "-chardev",
			"socket,id=charmonitor,path=@/libvirt/qemu/domain--1-v/monitor.sock,server=on,wait=off", "-mon",
			"chardev=charmonitor,id=monitor,mode=control",
		}},
		"abstract": {args: []string{"-name", named, "-qmp", "unix:%s,server=on,wait=off,abstract=on"}},
		"abstract, padded": {
			args: []string{"-name", named, "-qmp", "unix:%s,server=on,wait=off,abstract=on,tight=off"},
		},
		"daemon, relative": {daemon: true, args: []string{
			"-name", named, "-daemonize", "-pidfile", "pid",
			"-qmp", "unix:d,server=on,wait=off",
		}},
		"chroot": {args: []string{
			"-name", named, "-chroot", "@/jail", "-qmp",
			"unix:@/c,server=on,wait=off",
		}},
		"inherited socket": {args: []string{"-name", named, "-qmp", "unix:fd=3,server=on,wait=off"}},
		"inherited, by its name": {args: []string{
			"-name", named, "-chardev", "socket,id=q,fd=3,server=on,wait=off",
			"-mon", "chardev=q,mode=control",
		}},
		"vendor's program": {
			program: "vanilla",
			args:    []string{"-name", named, "-qmp", "unix:v,server=on,wait=off"},
		},
		"vendor's, behind timeout": {
			program: "timeout",
			args:    []string{"120", "vanilla", "-name", named, "-qmp", "unix:@/v,server=on,wait=off"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			dir := h.dir()
			for _, d := range []string{"libvirt/qemu/domain--1-v", "jail"} {
				if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			h.inConfig(dir, config+"[name]\n  guest = \"own-"+uniqueSuffix(h.ns)+"1\"\n")
			if strings.HasPrefix(name, "inherited") {
				q.files = []*os.File{h.listening(filepath.Join(dir, "i"))}
			}
			if strings.HasPrefix(name, "vendor") {
				vanilla := h.vanilla(dir)
				if q.program == "vanilla" {
					q.program = vanilla
				} else {
					q.args[1] = vanilla
				}
			}
			var spec nic.Spec
			if name == "chroot" { // it finds no ROMs there
				spec.DeviceOptions = map[string]string{"romfile": ""}
			}
			h.worksWithoutItsPath(h.startOwn(q, dir), spec)
		})
	}
}

func (h *host) inConfig(dir, text string) {
	h.Helper()
	if err := os.WriteFile(filepath.Join(dir, "rc"), []byte(text), 0o644); err != nil {
		h.Fatal(err)
	}
}

// listening is a socket that a manager hands on.
func (h *host) listening(path string) *os.File {
	h.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		h.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = f.Close() })
	return f
}

// vanilla is QEMU under a name by which nobody knows it.
func (h *host) vanilla(dir string) string {
	h.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	nstest.Require(h, "qemu", err == nil, "apt-get install qemu-system-x86")
	to := filepath.Join(dir, "vmm-x86_64")
	from, err := os.Open(path)
	if err != nil {
		h.Fatal(err)
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err == nil {
		_, err = io.Copy(f, from)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		h.Fatal(err)
	}
	return to
}

// TestLiveOnlyAMonitorIsConnectedTo: nothing on the command line says where the monitor is. It is
// found among the sockets by its greeting, and those of gdb and of a console, which the command
// line has, are left alone: gdb's stub would stop the guest.
func TestLiveOnlyAMonitorIsConnectedTo(t *testing.T) {
	h := newHost(t)
	dir := h.dir()
	h.inConfig(dir, `[chardev "silent"]
  backend = "socket"
  path = "silent"
  server = "on"
  wait = "off"
`+config)
	vm := h.startOwn(ownQEMU{running: true, args: []string{
		"-name", "guest=%s", "-readconfig", "rc", "-serial", "chardev:silent",
		"-gdb", "unix:g,server=on,wait=off", "-serial", "unix:@/s,server=on,wait=off", "-vnc", "unix:@/vnc",
	}}, dir)
	monitor := filepath.Join(dir, "l")
	nstest.Eventually(t, 30*time.Second, "the monitor", func() bool { _, err := os.Stat(monitor); return err == nil })
	if err := os.Remove(filepath.Join(dir, "rc")); err != nil {
		t.Fatal(err)
	}
	h.worksWithoutItsPath(vm, nic.Spec{})
	ctx := h.context(10 * time.Second)
	c, err := qmp.Dial(ctx, monitor)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var status struct{ Status string }
	if err := c.Execute(ctx, "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("the guest is %q, %v: want it running", status.Status, err)
	}
}

// TestLivePreconfig: a QEMU that has no machine yet is found, and the error says what it waits for.
func TestLivePreconfig(t *testing.T) {
	h := newHost(t)
	dir := h.dir()
	vm := h.startOwn(ownQEMU{running: true, args: []string{
		"-name", "guest=%s", "-preconfig", "-qmp",
		"unix:q,server=on,wait=off",
	}}, dir)
	nstest.Eventually(t, 30*time.Second, "the monitor", func() bool {
		c, err := qmp.Dial(h.context(20*time.Second), filepath.Join(dir, "q"))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	spec := nic.Spec{Target: nic.Target{VM: vm}, NIC: "net0", Bridge: "br0", Vhost: nic.VhostOff}
	if _, err := h.Attach(h.context(20*time.Second), spec); err == nil ||
		!strings.Contains(err.Error(), "x-exit-preconfig") {
		t.Errorf("attach: %v: want it to say what QEMU waits for", err)
	}
	ctx := h.context(20 * time.Second)
	c, err := qmp.Dial(ctx, filepath.Join(dir, "q"))
	if err != nil {
		t.Fatal(err)
	}
	err = c.Execute(ctx, "x-exit-preconfig", nil, nil)
	_ = c.Close()
	if err != nil {
		t.Fatal(err)
	}
	h.worksWithoutItsPath(vm, nic.Spec{})
}
