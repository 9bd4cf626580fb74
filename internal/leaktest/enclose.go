package leaktest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageEnv says how far the enclosure of a test program is: the outer process has no value, the
// first process of the namespaces has stageInit, and the tests and every program that they start
// have stageInside.
const (
	stageEnv    = "VMNET_TEST_STAGE"
	stageInit   = "init"
	stageInside = "inside"
)

// pidsEnv has the value pidsMachine if the tests should see the machine's processes.
const (
	pidsEnv     = "VMNET_TEST_PIDS"
	pidsMachine = "machine"
)

func ownPIDs() bool { return os.Getenv(pidsEnv) != pidsMachine }

// openFilesLimit is the RLIMIT_NOFILE of all tests, whatever the machine's limit is.
const openFilesLimit = 16384

// raceEnv has the race detector's options (https://go.dev/doc/articles/race_detector#Options).
const raceEnv = "GORACE"

// foreign are variables that change what programs do, and that tests set for
// themselves.
var foreign = []string{
	"NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "TERM", "NOTIFY_SOCKET", "LISTEN_FDS",
	"LISTEN_PID", "LISTEN_FDNAMES",
	"JOURNAL_STREAM", "INVOCATION_ID", "XDG_RUNTIME_DIR", "LIBVIRT_DEFAULT_URI", "VIRSH_DEFAULT_CONNECT_URI",
}

// Enclose returns in the process that runs the tests. As root that process has mount, pid, network
// and IPC namespaces of its own: other processes, links and sockets of the machine are neither seen
// nor changed, and /run and the directory for temporary files vanish with it, however it ends.
// Without root it is this process. Tests of effects that only the first pid namespace shows set
// VMNET_TEST_PIDS=machine, and have no pid namespace of their own. In all cases nothing is
// inherited: signals have their default actions, no fd above 2 is passed on, the umask is 022, and
// the limit of open files is the same everywhere.
//
// Call it first in TestMain, unless Main calls it.
func Enclose() { enclose(false) }

// enclose is Enclose; with ownUserNS, the tests of an ordinary user have the same namespaces as
// root's, if the machine lets the user make them.
func enclose(ownUserNS bool) {
	switch os.Getenv(stageEnv) {
	case stageInside:
		return
	case stageInit:
		os.Exit(initMain())
	}
	signals := ownSignals()
	if err := inheritNothing(); err != nil {
		fail(err)
	}
	self, err := os.Executable()
	if err != nil {
		fail(err)
	}
	if os.Geteuid() != 0 && ownUserNS {
		if err := os.Setenv(userNSEnv, runInUserNS(self, signals).Error()); err != nil {
			fail(err)
		}
	}
	if os.Geteuid() != 0 {
		fail(unix.Exec(self, os.Args, append(os.Environ(), stageEnv+"="+stageInside)))
	}
	os.Exit(runInit(self, signals))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "enclose the tests:", err)
	os.Exit(1)
}

// ownSignals catches SIGHUP and SIGINT, even if nohup(1) or a service manager made this process
// ignore them: an ignored signal stays ignored over execve(2), a caught one gets its default
// action. Go's runtime catches all others by itself. The channel delivers the signals that this
// process must pass on.
func ownSignals() <-chan os.Signal {
	var heard []os.Signal
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT} {
		if !signal.Ignored(s) {
			heard = append(heard, s)
		}
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, heard...)
	return signals
}

// inheritNothing sets fds, limits, the umask and the environment to the values that tests rely on.
func inheritNothing() error {
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close inherited fds at execve: %w", err)
	}
	if err := limitOpenFiles(); err != nil {
		return err
	}
	unix.Umask(0o022)
	// The race detector lets a program that exits sleep for a second, in case a goroutine that
	// still runs meets a race. The tests end without such goroutines, and start many programs.
	if os.Getenv(raceEnv) == "" {
		if err := os.Setenv(raceEnv, "atexit_sleep_ms=0"); err != nil {
			return err
		}
	}
	for _, name := range foreign {
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	return nil
}

// limitOpenFiles sets RLIMIT_NOFILE to openFilesLimit, or to a lower hard limit that this process
// may not raise.
func limitOpenFiles() error {
	want := syscall.Rlimit{Cur: openFilesLimit, Max: openFilesLimit}
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want)
	if !errors.Is(err, syscall.EPERM) {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("set RLIMIT_NOFILE to %d: %w", limit.Cur, err)
	}
	return nil
}

// runInit starts the first process of the namespaces and returns the exit status of the tests.
func runInit(self string, signals <-chan os.Signal) int {
	cmd := initCommand(self, &syscall.SysProcAttr{})
	if err := cmd.Start(); err != nil {
		fail(err)
	}
	return await(cmd, signals)
}

// initCommand returns the first process of the namespaces, with these attributes besides, which
// dies with the calling thread.
func initCommand(self string, attr *syscall.SysProcAttr) *exec.Cmd {
	runtime.LockOSThread() // Pdeathsig follows the thread that starts the child
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"="+stageInit)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	attr.Cloneflags |= unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC
	if ownPIDs() {
		attr.Cloneflags |= unix.CLONE_NEWPID
	}
	attr.Pdeathsig = unix.SIGKILL
	cmd.SysProcAttr = attr
	return cmd
}

// await returns the exit status of the first process of the namespaces, to which it passes signals.
func await(cmd *exec.Cmd, signals <-chan os.Signal) int {
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		fail(err)
	}
	if cmd.ProcessState.Exited() {
		return cmd.ProcessState.ExitCode()
	}
	fail(fmt.Errorf("the tests' first process: %s", strings.TrimSpace(cmd.ProcessState.String())))
	return 1
}
