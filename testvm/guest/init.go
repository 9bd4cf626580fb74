// Package guest is the program that runs as /init in a test guest: it loads the virtio drivers and
// serves the host's requests on the agent's port. In a lab host it first makes the machine's file
// system its root.
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

// HostnameArg on the kernel's command line is followed by the guest's name.
const HostnameArg = "vmnet.hostname="

// ModulesDir holds the kernel modules to load, in the order of their names.
const ModulesDir = "/modules"

// retry is the interval at which the guest looks for its port and its host.
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

// attempt runs the steps. It prints an error on the console and goes on.
func attempt(steps ...step) {
	for _, s := range steps {
		if err := s.do(); err != nil {
			say("%s: %v", s.name, err)
		}
	}
}

// Serve serves the host's requests, and runs a shell if the kernel's command line asks for one; it
// never returns.
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

// loadModules goes on after an error: the guest may not need that module.
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

// serveForever serves the agent's port. A read returns EOF at once while no client is connected on
// the host, so it tries again at intervals.
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

// settle is the time that the port may take to notice a new client.
const settle = 500 * time.Millisecond

// steadyPort returns EOF only if no client has been connected for a while. If a client connects
// right after another one, its data arrives before the port learns of it, which comes through
// another queue. An EOF in between would cancel the new client's requests.
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

// powerOff ends the guest. Without ACPI the machine cannot power itself off; then a reset ends
// QEMU, which runs with -no-reboot.
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
