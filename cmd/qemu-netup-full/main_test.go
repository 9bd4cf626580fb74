package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/tun"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
)

// nobody is the user without any privilege.
const nobody = 65534

const insideEnv = "VMNET_TEST_MOUNTS"

// TestMain runs the tests in a mount namespace of their own, where everybody may open
// /dev/net/tun, as on most machines.
func TestMain(m *testing.M) {
	if os.Getenv(vmmEnv) != "" {
		os.Exit(runVMM())
	}
	leaktest.Enclose()
	if os.Geteuid() != 0 || os.Getenv(insideEnv) != "" {
		leaktest.Main(m)
	}
	dir, err := os.MkdirTemp("", "qemu-netup-dev")
	if err == nil {
		defer os.RemoveAll(dir)
		err = inOwnMounts(dir)
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// inOwnMounts runs this test binary again. The mounts are made by a thread that ends.
func inOwnMounts(dir string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: without, the next system call may be another thread's
		done <- func() error {
			err := errors.Join(
				unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
				unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
				unix.Mount("none", dir, "tmpfs", 0, "mode=755"))
			if err == nil {
				err = openTun(dir)
			}
			if err != nil {
				return err
			}
			cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
			cmd.Env = append(os.Environ(), insideEnv+"=1")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			return cmd.Run()
		}()
	}()
	return <-done
}

// openTun puts a node that everybody may open over the machine's.
func openTun(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(tun.Device, &st); errors.Is(err, unix.ENOENT) {
		return nil // the tests say so
	} else if err != nil {
		return err
	}
	node := filepath.Join(dir, "tun")
	return errors.Join(
		unix.Mknod(node, unix.S_IFCHR|0o666, int(st.Rdev)),
		unix.Chmod(node, 0o666),
		unix.Mount(node, tun.Device, "", unix.MS_BIND, ""))
}

// installation is the program as an administrator has installed it, with configuration of its own.
type installation struct {
	testing.TB
	dir     string // that everybody may look into
	program string // qemu-netup, which becomes full
	full    string // this package
}

// install installs the program setuid root. bridge.conf and policy.yaml are where
// config puts them.
func install(tb testing.TB) *installation {
	tb.Helper()
	nstest.Require(tb, "root", os.Geteuid() == 0, "run it as root")
	i := &installation{TB: tb, dir: filepath.Join(os.TempDir(), dirPrefix+rand.Text()[:dirRandom])}
	if err := os.Mkdir(i.dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(i.dir); err != nil {
			tb.Error(err)
		}
	})
	i.program, i.full = i.path("qemu-netup"), i.path("qemu-netup-full")
	i.build(i.program, "../qemu-netup")
	i.build(i.full, ".")
	if err := os.Chmod(i.program, 0o755|os.ModeSetuid); err != nil {
		tb.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(i.dir, &fs); err != nil || fs.Flags&unix.ST_NOSUID != 0 {
		tb.Fatalf("%s is mounted nosuid (%v): set TMPDIR to another directory", i.dir, err)
	}
	return i
}

// The names of all installations' directories have one length, so that one build serves all.
const (
	dirPrefix = "qemu-netup-"
	dirRandom = 10
)

// build installs a program whose paths are this installation's: a build for a directory that stands
// for all of them, with the directory's name replaced.
func (i *installation) build(to, source string) {
	i.Helper()
	name := dirPrefix + strings.Repeat("X", dirRandom)
	path := func(file string) string { return filepath.Join(filepath.Dir(i.dir), name, file) }
	program := testprogram.Build(i, source,
		"main.aclPath="+path("bridge.conf"), "main.policyPath="+path("policy.yaml"),
		"main.fullPath="+path(filepath.Base(i.full)), "main.networksPath="+path("networks.d"))
	if !bytes.Contains(program, []byte(name)) {
		i.Fatalf("%s has no path in %s", source, name)
	}
	testprogram.Install(i, to, bytes.ReplaceAll(program, []byte(name), []byte(filepath.Base(i.dir))))
}

func (i *installation) path(name string) string { return filepath.Join(i.dir, name) }

// config writes a configuration file, which everybody may read.
func (i *installation) config(name, text string) {
	i.Helper()
	if err := os.WriteFile(i.path(name), []byte(text), 0o644); err != nil {
		i.Fatal(err)
	}
}

// as prepares a command of the program that a user runs, in the netns that the calling thread is
// in.
func (i *installation) as(uid int, args ...string) *exec.Cmd {
	cmd := exec.Command(i.program, args...)
	cmd.Dir = i.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)},
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd
}
