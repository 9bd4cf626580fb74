// Package guest is the program that runs as /init in a test guest: it loads the
// virtio drivers and does what the host asks over the agent's port. In a lab host
// it first moves into the machine's file system.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/testvm/agent"
)

// ShellArg on the kernel's command line asks for a shell on the serial console;
// the guest powers off when it ends.
const ShellArg = "vmnet.shell"

// HostnameArg and what follows it on the kernel's command line is the guest's name.
const HostnameArg = "vmnet.hostname="

// ModulesDir holds the kernel modules to load, in the order of their names.
const ModulesDir = "/modules"

// retry is how long the guest waits for its port or its host before it looks again.
const retry = 20 * time.Millisecond

type step struct {
	name string
	do   func() error
}

// Main is /init; it never returns.
func Main() {
	attempt(step{"mount", func() error { return mountAll(initMounts) }}, step{"set the hostname", setHostname})
	lo := step{"bring lo up", func() error { return setLink(agent.LinkSet{Link: "lo", Up: new(true)}) }}
	modules := step{"load modules", loadModules}
	if told(RootArg) {
		attempt(modules, lo)
		labHost()
	}
	attempt(step{"switch duplicate address detection off", skipDAD}, modules, lo) // the NICs copy the setting
	_ = os.Setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
	_ = os.Setenv("HOME", "/")
	Serve()
}

// attempt takes the steps and goes on after an error, with a line on the console.
func attempt(steps ...step) {
	for _, s := range steps {
		if err := s.do(); err != nil {
			say("%s: %v", s.name, err)
		}
	}
}

// Serve does what the host asks, and runs the shell that the kernel's command line
// asks for; it never returns.
func Serve() {
	if told(ShellArg) {
		go shell()
	}
	serveForever()
}

// told reports whether the kernel's command line holds the argument.
func told(arg string) bool { return slices.Contains(commandLine(), arg) }

func commandLine() []string {
	raw, _ := os.ReadFile("/proc/cmdline")
	return strings.Fields(string(raw))
}

func setHostname() error {
	for _, arg := range commandLine() {
		if name, ok := strings.CutPrefix(arg, HostnameArg); ok {
			return unix.Sethostname([]byte(name))
		}
	}
	return nil
}

// say prints a line on the console.
func say(format string, args ...any) { fmt.Printf("vmnet: "+format+"\n", args...) }

var initMounts = []mount{
	{"proc", "/proc", "proc", "", 0},
	{"sysfs", "/sys", "sysfs", "", 0},
	{"devtmpfs", "/dev", "devtmpfs", "", 0},
	{"tmpfs", "/tmp", "tmpfs", "", 0},
}

// loadModules goes on after an error: the next module may be the one that matters.
func loadModules() error {
	files, err := filepath.Glob(ModulesDir + "/*.ko") // sorted
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range files {
		if err := loadModule(name); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("%s: %w", filepath.Base(name), err))
		}
	}
	return errors.Join(errs...)
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// skipDAD makes IPv6 addresses usable at once.
func skipDAD() error {
	for _, which := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // ipv6.disable=1
			return err
		}
	}
	return nil
}

// serveForever answers on the agent's port. Reading it returns EOF at once while
// nobody is connected on the host; so it looks again at intervals.
func serveForever() {
	handlers := handlers()
	for told := false; ; time.Sleep(retry) {
		port, err := openPort()
		if err != nil {
			continue
		}
		if !told {
			say("the agent serves %s", port.Name())
			told = true
		}
		for err == nil || errors.Is(err, io.EOF) {
			err = agent.Serve(context.Background(), steadyPort{port}, handlers)
			time.Sleep(retry)
		}
		say("%v", err)
		port.Close()
	}
}

// settle is how late the port may know that somebody is connected.
const settle = 500 * time.Millisecond

// steadyPort reads EOF only where nobody has been connected for a while. Who connects right after
// another is read before the port knows of it: that comes by another queue. An EOF in
// between would cancel what has just been asked for.
type steadyPort struct{ *os.File }

func (p steadyPort) Read(b []byte) (n int, err error) {
	for end := time.Now().Add(settle); ; time.Sleep(retry) {
		n, err = p.File.Read(b)
		if !errors.Is(err, io.EOF) || time.Now().After(end) {
			return n, err
		}
	}
}

// openPort finds the port by its name, as virtio_console shows it in sysfs.
func openPort() (*os.File, error) {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, name := range names {
		content, _ := os.ReadFile(name)
		if strings.TrimSpace(string(content)) == agent.PortName {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
		}
	}
	return nil, fs.ErrNotExist
}

// shell runs a shell on the serial console and powers off after it.
func shell() {
	tty, err := os.OpenFile("/dev/ttyS0", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err == nil {
		cmd := exec.Command("/bin/busybox", "sh", "-l")
		if Inside() {
			cmd = exec.Command("/bin/bash", "-l")
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.Env = append(os.Environ(), "TERM=vt100", `PS1=\h:\w\$ `)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		err = cmd.Run()
	}
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		say("shell: %v (setup.sh installs busybox)", err)
	}
	powerOff()
}

// powerOff ends the guest. Without ACPI the machine cannot switch itself off; there
// a reset ends QEMU, which runs with -no-reboot.
func powerOff() {
	unix.Sync()
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if _, err := os.Stat("/sys/firmware/acpi"); err != nil {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	if err := unix.Reboot(how); err != nil {
		say("power off: %v", err)
	}
}

// setLink changes a link.
func setLink(c agent.LinkSet) error {
	link, err := netlink.LinkByName(c.Link)
	if err != nil {
		return fmt.Errorf("link %s: %w", c.Link, err)
	}
	if c.MTU != 0 {
		err = netlink.LinkSetMTU(link, c.MTU)
	}
	if err == nil && c.MAC != "" {
		err = setMAC(link, c.MAC)
	}
	if err == nil && c.Up != nil {
		if *c.Up {
			err = netlink.LinkSetUp(link)
		} else {
			err = netlink.LinkSetDown(link)
		}
	}
	if err != nil {
		return fmt.Errorf("change link %s: %w", c.Link, err)
	}
	return nil
}
