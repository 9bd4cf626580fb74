package leaktest

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runDir and tempDir are private to the tests.
const (
	runDir  = "/run"
	tempDir = "/tmp"
)

// endsWithin bounds how long processes that the tests have started may outlive them.
const endsWithin = 5 * time.Second

// initMain is the first process of the namespaces: it prepares them, runs the tests, reaps the
// processes that they orphan, and fails them for what they leave behind.
func initMain() int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	self, err := os.Executable()
	if err != nil {
		fail(err)
	}
	kept, err := prepare(self)
	reportUserNS(err)
	if err != nil {
		fail(err)
	}
	runtime.LockOSThread() // Pdeathsig follows the thread that starts the child
	beside, err := startBeside()
	if err != nil {
		fail(err)
	}
	if err := os.Setenv("TMPDIR", tempDir); err != nil {
		fail(err)
	}
	if err := os.Setenv(stageEnv, stageInside); err != nil {
		fail(err)
	}
	tests, err := os.StartProcess(self, os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		fail(err)
	}
	go func() {
		for s := range signals {
			_ = tests.Signal(s)
		}
	}()
	status := reapUntil(tests.Pid, beside)
	if err := beside.stop(); status == 0 && err != nil {
		fmt.Fprintln(os.Stderr, "leaktest:", err)
		status = 1
	}
	if status != 0 {
		return status
	}
	if err := left(kept); err != nil {
		fmt.Fprintln(os.Stderr, "leaktest:", err)
		endOthers()
		return 1
	}
	return 0
}

// prepare makes the mounts private, mounts the file systems that show the new namespaces, and
// brings the loopback device up. It returns the entries of the machine's tempDir that remain
// visible.
func prepare(self string) (kept []string, err error) {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make the mounts private: %w", err)
	}
	if err := ownProc(); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", runDir, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", runDir, err)
	}
	if err := ownSys(); err != nil {
		return nil, err
	}
	if kept, err = ownTemp(self); err != nil {
		return nil, err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("bring lo up: %w", err)
	}
	return kept, nil
}

// ownProc mounts /proc if there is a new pid namespace to show. In the machine's, this process
// becomes the parent of the processes that the tests orphan.
func ownProc() error {
	if !ownPIDs() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become the parent of orphans: %w", err)
		}
		return nil
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// ownSys mounts a sysfs of the new network namespace over the machine's, and keeps the machine's
// cgroups in it. A container may forbid both; then the machine's sysfs stays.
func ownSys() error {
	const cgroups, kept = "/sys/fs/cgroup", runDir + "/cgroup"
	if err := os.Mkdir(kept, 0o700); err != nil {
		return err
	}
	defer os.Remove(kept)
	if err := unix.Mount(cgroups, kept, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep %s: %w", cgroups, err)
	}
	defer func() { _ = unix.Unmount(kept, unix.MNT_DETACH) }()
	err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	if err == nil {
		err = unix.Mount(kept, cgroups, "", unix.MS_BIND|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

// reapUntil reaps all children until pid has exited, and returns its exit status.
func reapUntil(pid int, beside *beside) int {
	for {
		var status unix.WaitStatus
		switch got, err := unix.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fail(fmt.Errorf("wait for the tests: %w", err))
		case got == pid && status.Exited():
			return status.ExitStatus()
		case got == pid:
			fail(fmt.Errorf("the tests ended by %s", status.Signal()))
		default:
			beside.reaped(got, status)
		}
	}
}

// left returns an error that names the leftovers of the tests: processes, links and files.
func left(kept []string) error {
	var err error
	for end := time.Now().Add(endsWithin); ; time.Sleep(20 * time.Millisecond) {
		for {
			if got, waitErr := unix.Wait4(-1, nil, unix.WNOHANG, nil); got <= 0 || waitErr != nil {
				break
			}
		}
		err = errors.Join(leftProcesses(), leftLinks(), leftFiles(kept))
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

func leftProcesses() error {
	pids, err := others()
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	var found []string
	for _, pid := range pids {
		argv, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err != nil {
			continue // it has exited
		}
		found = append(found,
			fmt.Sprintf("%s (%.200q)", pid, strings.ReplaceAll(strings.TrimRight(string(argv), "\x00"), "\x00", " ")))
	}
	if found == nil {
		return nil
	}
	return fmt.Errorf("processes still run: %s", strings.Join(found, ", "))
}

// endOthers kills the tests' leftover processes in the machine's pid namespace. A pid namespace of
// their own ends with this process.
func endOthers() {
	for pids, err := others(); !ownPIDs() && err == nil && len(pids) > 0; pids, err = others() {
		for _, text := range pids {
			if pid, err := strconv.Atoi(text); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		_, _ = unix.Wait4(-1, nil, 0, nil)
	}
}

// others lists the other processes of the pid namespace, or in the machine's the children of this
// one.
func others() ([]string, error) {
	var pids []string
	if ownPIDs() {
		dirs, err := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			if pid := filepath.Base(dir); pid != strconv.Itoa(os.Getpid()) {
				pids = append(pids, pid)
			}
		}
		return pids, err
	}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	for _, path := range tasks {
		text, readErr := os.ReadFile(path)
		if errors.Is(readErr, fs.ErrNotExist) {
			continue // the thread has exited
		}
		err = errors.Join(err, readErr)
		pids = append(pids, strings.Fields(string(text))...)
	}
	return pids, err
}

func leftLinks() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var found []string
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback == 0 {
			found = append(found, l.Attrs().Name)
		}
	}
	if found == nil {
		return nil
	}
	return fmt.Errorf("links are still there: %s", strings.Join(found, ", "))
}

// mountDir is where mount(8) keeps its state.
const mountDir = runDir + "/mount"

func leftFiles(kept []string) error {
	var found []string
	for _, dir := range []string{runDir, tempDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if path := filepath.Join(dir, e.Name()); path != mountDir && !slices.Contains(kept, path) {
				found = append(found, path)
			}
		}
	}
	if found == nil {
		return nil
	}
	return fmt.Errorf("files are still there: %s", strings.Join(found, ", "))
}
