package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// RootArg on the kernel's command line makes the guest a lab host: its root is the directory that
// QEMU shares as RootTag, read-only below a tmpfs.
const (
	RootArg = "vmnet.root"
	RootTag = "vmnet-root"
)

// Program is the path in a lab host of the program with which it booted, also for guests inside it.
// When it runs under the name ServeName, it serves the host outside.
const (
	Program   = "/run/vmnet-lab/init"
	ServeName = "vmnet-serve"
)

// ModuleTrees holds the modules of each kernel release. The initramfs of a lab host has a link in
// it to the machine's modules.
const ModuleTrees = "/lib/modules/"

// Inside reports whether this machine is a lab host.
func Inside() bool { return told(RootArg) }

// labHost is the second half of Main, after the modules are loaded. As process 1 it reaps orphaned
// processes, as on a real host; the agent is its child.
func labHost() {
	err := enterRoot()
	var agent *exec.Cmd
	if err == nil {
		_ = os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
		_ = os.Setenv("HOME", "/root")
		agent = exec.Command(Program)
		agent.Args[0] = ServeName
		agent.Stdout, agent.Stderr = os.Stdout, os.Stderr
		err = agent.Start()
	}
	for err == nil {
		var pid int
		var status unix.WaitStatus
		pid, err = unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			err = nil
		case err == nil && pid == agent.Process.Pid:
			err = fmt.Errorf("the agent ended: wait status %#x", int(status))
		}
	}
	say("lab host: %v", err)
	time.Sleep(100 * time.Millisecond) // the serial port is slow
	powerOff()
	select {}
}

// enterRoot makes the machine's file system the root. The initramfs stays hidden below it.
func enterRoot() error {
	modules, tree, err := moduleTree()
	for _, s := range []step{
		{"find the kernel's modules", func() error { return err }},
		{"share the machine's files", func() error { return mountAll(lowerMounts) }},
		{"make them writable", overlay},
		{"move into them", func() error { return moveTo("/newroot") }},
		{"make it a host", func() error { return mountAll(hostMounts) }},
		{"make device nodes", makeNodes},
		{"keep the program", func() error { return bind("/proc/self/exe", Program, create) }},
		{"show the kernel's modules", func() error { return bind(tree, modules, mkdir) }},
	} {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// moduleTree returns the directory in which modprobe looks for this kernel's modules, and the one
// in which the machine has them.
func moduleTree() (modules, tree string, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", "", err
	}
	modules = ModuleTrees + unix.ByteSliceToString(name.Release[:])
	tree, err = os.Readlink(modules)
	return modules, tree, err
}

// lowerMounts mounts the machine's files. They are cached without revalidation, since each would
// cost a round trip to QEMU. Changes on the machine after a file was read here may not be visible.
var lowerMounts = []mount{
	{RootTag, "/lower", "9p", "trans=virtio,version=9p2000.L,msize=512000,cache=loose", unix.MS_RDONLY},
	{"tmpfs", "/upper", "tmpfs", "size=75%,mode=755", 0},
}

func overlay() error {
	if err := errors.Join(mkdir("/upper/files"), mkdir("/upper/work")); err != nil {
		return err
	}
	return mount{
		"overlay", "/newroot", "overlay", "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work",
		0,
	}.mount()
}

// hostMounts are the mounts of a host. /tmp stays the machine's, which may hold the tested
// programs.
var hostMounts = []mount{
	{"", "/", "", "", unix.MS_REC | unix.MS_SHARED}, // as systemd does
	{"proc", "/proc", "proc", "", 0},
	{"sysfs", "/sys", "sysfs", "", 0},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", "", 0},
	{"devtmpfs", "/dev", "devtmpfs", "", 0},
	{"devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666", 0},
	{"tmpfs", "/dev/shm", "tmpfs", "mode=1777", 0},
	{"tmpfs", "/run", "tmpfs", "mode=755", 0},
}

type mount struct {
	source, target, kind, data string
	flags                      uintptr
}

func (m mount) mount() error {
	if err := errors.Join(mkdir(m.target), unix.Mount(m.source, m.target, m.kind, m.flags, m.data)); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

func mountAll(mounts []mount) error {
	var errs []error
	for _, m := range mounts {
		if err := m.mount(); !errors.Is(err, unix.EBUSY) { // is mounted there already
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// bind mounts source at target, which create makes.
func bind(source, target string, create func(string) error) error {
	if _, err := os.Stat(source); err != nil {
		return fmt.Errorf("%w (a lab host does not see the machine's /dev, /proc, /run and /sys)", err)
	}
	return errors.Join(mkdir(filepath.Dir(target)), create(target), unix.Mount(source, target, "", unix.MS_BIND, ""))
}

func mkdir(name string) error  { return os.MkdirAll(name, 0o755) }
func create(name string) error { return os.WriteFile(name, nil, 0o755) }

// moveTo makes the mount at dir the root of this process and of the kernel's threads, which share
// it with process 1 and run modprobe in it. pivot_root(2) refuses to leave an initramfs.
func moveTo(dir string) error {
	return errors.Join(
		unix.Chdir(dir),
		unix.Mount(".", "/", "", unix.MS_MOVE, ""),
		unix.Chroot("."),
		unix.Chdir("/"))
}

// makeNodes creates the device nodes that udev would. Opening the two static nodes loads the module
// (include/linux/miscdevice.h: TUN_MINOR, VHOST_NET_MINOR).
func makeNodes() error {
	err := os.MkdirAll("/dev/net", 0o755)
	for name, minor := range map[string]uint32{"/dev/net/tun": 200, "/dev/vhost-net": 238} {
		const misc = 10
		err = errors.Join(err, unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(misc, minor))))
	}
	for name, target := range map[string]string{"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"} {
		err = errors.Join(err, os.Symlink("/proc/self/fd"+target, "/dev/"+name))
	}
	return err
}
