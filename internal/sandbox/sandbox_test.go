package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

// attemptEnv makes the test's program a child that enters the sandbox and attempts something.
const attemptEnv = "VMNET_TEST_ATTEMPT"

func TestMain(m *testing.M) {
	if name := os.Getenv(attemptEnv); name != "" {
		os.Exit(attempt(name, Mode(os.Args[1]), os.Args[2]))
	}
	leaktest.Main(m)
}

// What the child's exit status says.
const (
	succeeded = iota
	refused
	failed
)

// refusedCalls are what seccomp refuses, deniedFiles what Landlock does, and permitted what a
// switch does. Each gets a directory of its own with the directories "mine" and "others", in each
// of which are a file "f" and a directory "sub".
var (
	refusedCalls = map[string]func(dir string) error{
		"execute a program": func(string) error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"start a process": func(string) error {
			_, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
			return err
		},
		"write to a file": func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, "mine/f"), os.O_WRONLY, 0)
			return closed(f, err)
		},
		"create a file": func(dir string) error { return closed(os.Create(filepath.Join(dir, "mine/new"))) },
		"make memory executable": func(string) error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
			return err
		},
		"signal its parent":  func(string) error { return unix.Kill(parent, 0) },
		"make an IP socket":  func(string) error { return socket(unix.AF_INET, unix.SOCK_DGRAM) },
		"ask the kernel":     func(string) error { return socket(unix.AF_NETLINK, unix.SOCK_RAW) },
		"enter a namespace":  func(string) error { return unix.Unshare(unix.CLONE_FS) },
		"watch its children": func(string) error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) },
		"open a pinned BPF map": func(string) error {
			err := bpf(unix.BPF_OBJ_GET, uint64(uintptr(unsafe.Pointer(&nowhere[0]))))
			if errors.Is(err, unix.ENOENT) {
				err = nil
			}
			return err
		},
		"rename a file": func(dir string) error {
			return os.Rename(filepath.Join(dir, "mine/f"), filepath.Join(dir, "mine/g"))
		},
	}
	deniedFiles = map[string]func(dir string) error{
		"read a file":            func(string) error { _, err := os.ReadFile("/etc/passwd"); return err },
		"open another directory": func(dir string) error { return closed(os.Open(filepath.Join(dir, "others"))) },
		readMemory: func(string) error {
			return closed(os.Open(fmt.Sprintf("/proc/%d/mem", child.Process.Pid)))
		},
		"remove another file":    func(dir string) error { return os.Remove(filepath.Join(dir, "others/f")) },
		"read a file in its own": func(dir string) error { _, err := os.ReadFile(filepath.Join(dir, "mine/f")); return err },
	}
	permitted = map[string]func(dir string) error{
		"lock its directory": func(dir string) error {
			f, err := os.Open(filepath.Join(dir, "mine"))
			if err != nil {
				return err
			}
			defer f.Close()
			return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		},
		"remove its socket":  func(dir string) error { return os.Remove(filepath.Join(dir, "mine/f")) },
		"remove a directory": func(dir string) error { return os.Remove(filepath.Join(dir, "mine/sub")) },
		"connect to a socket": func(dir string) error {
			c, err := net.Dial("unix", filepath.Join(dir, "socket"))
			if err != nil {
				return err
			}
			return c.Close()
		},
		"make threads": threads,
		"write to a BPF map": func(string) error {
			if err := bpf(unix.BPF_MAP_UPDATE_ELEM, 1<<31-1); !errors.Is(err, unix.EBADF) {
				return fmt.Errorf("a map that is not open: %w", err)
			}
			return nil
		},
		"read a pidfd's process": func(string) error {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			if err != nil {
				return err
			}
			info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
			if err == nil && !strings.Contains(string(info), "Pid:") {
				err = fmt.Errorf("no pidfd: %q", info)
			}
			return err
		},
	}
)

var parent = os.Getppid()

// child is a process that was started before the sandbox: only of a descendant may any process read
// the memory (yama(7)). It ends with its standard input.
const readMemory = "read the memory of a child"

var child = exec.Command("cat")

// nowhere is a path at which there is nothing.
var nowhere = []byte("/nowhere\x00")

// bpf calls bpf(2), with the word with which the attributes of the commands begin.
func bpf(command int, first uint64) error {
	attr := append([]uint64{first}, make([]uint64, 3)...)
	_, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(unsafe.Pointer(&attr[0])), 32)
	return errno
}

func socket(domain, kind int) error {
	fd, err := unix.Socket(domain, kind, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func closed(f *os.File, err error) error {
	if err != nil {
		return err
	}
	return f.Close()
}

// threads has many threads at a time, and memory collected.
func threads(string) error {
	var all sync.WaitGroup
	together := make(chan struct{})
	for range 50 {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			<-together
		})
	}
	close(together)
	all.Wait()
	runtime.GC()
	return nil
}

func attempt(name string, mode Mode, dir string) int {
	mine := filepath.Join(dir, "mine")
	if name == readMemory {
		if _, err := child.StdinPipe(); err != nil || child.Start() != nil {
			return failed
		}
	}
	on, err := Enter(Config{Mode: mode, LockDirs: []string{mine}, RemoveDirs: []string{mine, dir + "/none"}})
	if mode != Off && (err != nil || len(on) == 0) {
		fmt.Println("enter:", on, err)
		return failed
	}
	for _, table := range []map[string]func(string) error{refusedCalls, deniedFiles, permitted} {
		if f, ok := table[name]; ok {
			err = f(dir)
		}
	}
	switch {
	case err == nil:
		return succeeded
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES):
		return refused
	}
	fmt.Println(err)
	return failed
}

// try attempts something in a child, and returns the child's end.
func try(t *testing.T, name string, mode Mode) *os.ProcessState {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"mine", "others"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, sub, "sub"), 0o700),
			os.WriteFile(filepath.Join(dir, sub, "f"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self, string(mode), dir)
	c.Env = append(os.Environ(), attemptEnv+"="+name)
	out, err := c.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if text := strings.TrimSpace(string(out)); text != "" {
		t.Logf("%s: %.300s", name, text)
	}
	return c.ProcessState
}

// TestCalls attempts what the filter of system calls refuses, with it and without.
func TestCalls(t *testing.T) {
	for name := range refusedCalls {
		t.Run(name, func(t *testing.T) {
			if got := try(t, name, Off).ExitCode(); got != succeeded {
				t.Errorf("without the sandbox: exit status %d", got)
			}
			if got := try(t, name, On).ExitCode(); got != refused {
				t.Errorf("exit status %d: want it refused", got)
			}
			end := try(t, name, Strict)
			if status := end.Sys().(syscall.WaitStatus); end.ExitCode() != 2 && status.Signal() != syscall.SIGSYS {
				t.Errorf("strict: %v: want the process ended by SIGSYS", end)
			}
		})
	}
}

// TestFiles attempts what Landlock denies, with it and without.
func TestFiles(t *testing.T) {
	abi, err := llsys.LandlockGetABIVersion()
	nstest.Require(t, "Landlock", err == nil && abi > 0, "boot a kernel with lsm=...,landlock")
	for name := range deniedFiles {
		t.Run(name, func(t *testing.T) {
			if got := try(t, name, Off).ExitCode(); got != succeeded {
				t.Errorf("without the sandbox: exit status %d", got)
			}
			if got := try(t, name, Strict).ExitCode(); got != refused {
				t.Errorf("exit status %d: want it refused", got)
			}
		})
	}
}

// TestPermitted does what a switch does, where a call that is missing in the list ends the process.
func TestPermitted(t *testing.T) {
	for name := range permitted {
		if got := try(t, name, Strict).ExitCode(); got != succeeded {
			t.Errorf("%s: exit status %d", name, got)
		}
	}
}

// TestTables builds the filter, and demands the calls without which no switch runs.
func TestTables(t *testing.T) {
	groups, err := allowed(1)
	if known := []string{"amd64", "arm64"}; !slices.Contains(known, runtime.GOARCH) && errors.Is(err, errNoTable) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Join(groups[0].Names, " ")
	for _, need := range []string{"read", "write", "futex", "recvmmsg", "epoll_pwait", "pidfd_open"} {
		if !strings.Contains(names, need) {
			t.Errorf("%s is not allowed", need)
		}
	}
}

func TestParseMode(t *testing.T) {
	for _, m := range Modes {
		if got, err := ParseMode(string(m)); got != m || err != nil {
			t.Errorf("%s: %q, %v", m, got, err)
		}
	}
	if _, err := ParseMode("yes"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("yes: %v", err)
	}
}
