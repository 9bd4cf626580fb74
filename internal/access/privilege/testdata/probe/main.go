// A short program has no use for the CPU limit of its cgroup, whose files Go's runtime would open
// at each start and keep open: under a low RLIMIT_NOFILE no fd would be left.
//
//go:debug containermaxprocs=0

// Probe is a privileged program made of the package's functions: each argument is a step, "name" or
// "name=value", and prints a line about itself. With "launch" as the first argument it is the
// opposite, a caller that sets up a hostile start; with "attack", one that waits for its moment.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/internal/access/privilege"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "launch" {
		fail("launch", launch(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "attack" {
		fail("attack", attack(os.Args[2:]))
		return
	}
	start := time.Now()
	p, err := privilege.Begin()
	fail("begin", err)
	for _, arg := range os.Args[1:] {
		name, value, _ := strings.Cut(arg, "=")
		step := steps[name]
		if step == nil {
			fail(name, errors.New("no such step"))
		}
		if name == "time" {
			start = time.Now()
		}
		out, err := step(p, value)
		if name == "took" {
			out = time.Since(start).String()
		}
		fail(name, err)
		fmt.Println(name, out)
	}
}

func fail(name string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "probe: %s: %v\n", name, err)
		os.Exit(3)
	}
}

// result is for steps that report their error instead of ending the program.
func result(err error) (string, error) {
	if err != nil {
		return err.Error(), nil
	}
	return "ok", nil
}

var steps = map[string]func(p *privilege.Process, value string) (string, error){
	"time":    func(*privilege.Process, string) (string, error) { return "", nil },
	"took":    func(*privilege.Process, string) (string, error) { return "", nil },
	"threads": threads,
	"report":  report,
	"caller": func(p *privilege.Process, _ string) (string, error) {
		return fmt.Sprint(p.Caller.UID, p.Caller.GID, p.Caller.Groups, p.Caller.Root(), p.Elevated()), nil
	},
	"keep": func(p *privilege.Process, value string) (string, error) {
		vs, err := capabilities(value)
		if err != nil {
			return "", err
		}
		return "ok", p.Keep(vs...)
	},
	"trykeep": func(p *privilege.Process, value string) (string, error) {
		vs, err := capabilities(value)
		if err != nil {
			return "", err
		}
		return result(p.Keep(vs...))
	},
	"confine": func(p *privilege.Process, value string) (string, error) {
		vs, err := capabilities(value)
		if err != nil {
			return "", err
		}
		return result(p.Confine(vs...))
	},
	"drop":   func(p *privilege.Process, _ string) (string, error) { return "ok", p.Drop() },
	"harden": func(p *privilege.Process, _ string) (string, error) { return "ok", privilege.Harden() },
	"giveup": func(_ *privilege.Process, uid string) (string, error) {
		to, err := privilege.Who()
		if err == nil && uid != "" {
			to = privilege.Caller{UID: number(uid), GID: number(uid), Groups: []int{7, 4}}
		}
		if err == nil {
			err = privilege.GiveUp(to)
		}
		return result(err)
	},
	"regain": func(*privilege.Process, string) (string, error) { return result(regain()) },
	"read": func(_ *privilege.Process, path string) (string, error) {
		_, err := os.ReadFile(path)
		return result(err)
	},
	"write": func(_ *privilege.Process, path string) (string, error) {
		return result(os.WriteFile(path, []byte("x"), 0o666))
	},
	"tun": func(_ *privilege.Process, path string) (string, error) { return result(tap(path)) },
	"getenv": func(p *privilege.Process, key string) (string, error) {
		return p.Getenv(key) + "|" + os.Getenv(key), nil
	},
	"inherited": func(_ *privilege.Process, n string) (string, error) { return result(privilege.Inherited(number(n))) },
	"closeinherited": func(_ *privilege.Process, n string) (string, error) {
		return "ok", privilege.CloseInherited(number(n))
	},
	"open": func(_ *privilege.Process, path string) (string, error) {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		opened = append(opened, f)
		return strconv.Itoa(int(f.Fd())), nil
	},
	"fds": func(_ *privilege.Process, path string) (string, error) {
		s, err := fds()
		if err == nil && path != "" { // for a probe whose fd 1 is closed
			err = os.WriteFile(path, []byte(s), 0o600)
		}
		return s, err
	},
	"panic": func(*privilege.Process, string) (string, error) { panic("as told") },
	"sleep": func(*privilege.Process, string) (string, error) { time.Sleep(time.Millisecond); return "", nil },
	"notify": func(*privilege.Process, string) (string, error) {
		signal.Notify(make(chan os.Signal, 1), unix.SIGINT)
		signal.Reset(unix.SIGINT)
		return "", nil
	},
	"find": func(p *privilege.Process, name string) (string, error) {
		path, err := p.Find(name)
		if err != nil {
			return err.Error(), nil
		}
		return path, nil
	},
	"exec": func(p *privilege.Process, value string) (string, error) {
		argv := strings.Fields(value)
		path, err := p.Find(argv[0])
		if err != nil {
			return "", err
		}
		return "", p.Exec(path, argv)
	},
	"handover": func(p *privilege.Process, value string) (string, error) { // PATH CAPABILITIES STEP...
		argv := strings.Fields(value)
		vs, err := capabilities(argv[1])
		if err != nil {
			return "", err
		}
		return result(p.HandOver(argv[0], append([]string{"by its own name"}, argv[2:]...), vs...))
	},
	"name":    func(*privilege.Process, string) (string, error) { return os.Args[0], nil },
	"environ": func(*privilege.Process, string) (string, error) { return strings.Join(os.Environ(), " "), nil },
}

var opened []*os.File

func number(s string) int {
	n, err := strconv.Atoi(s)
	fail(s, err)
	return n
}

func capabilities(list string) ([]cap.Value, error) {
	var vs []cap.Value
	for s := range strings.SplitSeq(list, "+") {
		v, err := cap.FromName("cap_" + s)
		if err != nil {
			return nil, err
		}
		vs = append(vs, v)
	}
	return vs, nil
}

// threads starts many threads, some of them waiting in a system call.
func threads(_ *privilege.Process, n string) (string, error) {
	ready := make(chan bool)
	for range number(n) {
		go func() {
			runtime.LockOSThread()
			ready <- true
			for {
				_ = unix.Nanosleep(&unix.Timespec{Sec: 3600}, nil)
			}
		}()
		<-ready
	}
	return "", nil
}

// report returns every thread's status, and what else Harden changes, as one line of JSON.
func report(*privilege.Process, string) (string, error) {
	r := struct {
		Tasks              []string
		Dumpable, KeepCaps int
		NoNewPrivs, Core   int
	}{}
	dir, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return "", err
	}
	for _, e := range dir {
		b, err := os.ReadFile("/proc/self/task/" + e.Name() + "/status")
		if err != nil {
			return "", err
		}
		r.Tasks = append(r.Tasks, string(b))
	}
	r.Dumpable, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	r.KeepCaps, _ = unix.PrctlRetInt(unix.PR_GET_KEEPCAPS, 0, 0, 0, 0)
	r.NoNewPrivs, _ = unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
		return "", err
	}
	r.Core = int(l.Max)
	b, err := json.Marshal(r)
	return string(b), err
}

// regain tries the ways back to privilege; nil means that one of them works.
func regain() error {
	all := cap.NewSet()
	for v := range cap.MaxBits() {
		_ = all.SetFlag(cap.Permitted, true, v)
		one := cap.NewSet()
		_ = one.SetFlag(cap.Permitted, true, v)
		if one.SetProc() == nil {
			return nil
		}
	}
	return errors.Join(syscall.Setresuid(-1, 0, -1), syscall.Setresgid(-1, 0, -1), all.SetProc())
}

func tap(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("probe0")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

func fds() (string, error) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return "", err
	}
	var s []string
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to != "anon_inode:[eventpoll]" {
			s = append(s, e.Name()+":"+to)
		}
	}
	return strings.Join(s, " "), nil
}

// launch is the caller: it changes itself as asked and executes the program after "--".
func launch(args []string) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	for len(args) > 0 && args[0] != "--" {
		name, value, _ := strings.Cut(args[0], "=")
		args = args[1:]
		if err := change(name, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	argv := args[1:]
	if argv0 {
		argv = nil
	}
	return execute(args[1], argv)
}

var argv0 bool

// limits are changed last of all, since the rest of this function has to work under them.
func change(name, value string) error {
	switch name {
	case "ignore":
		for _, s := range signals(value) {
			signal.Ignore(s)
		}
	case "block":
		var set unix.Sigset_t
		for _, s := range signals(value) {
			set.Val[(s-1)/64] |= 1 << ((s - 1) % 64)
		}
		return unix.PthreadSigmask(unix.SIG_SETMASK, &set, nil)
	case "umask":
		unix.Umask(number(value))
	case "cwd":
		if err := os.Chdir(value); err != nil {
			return err
		}
	case "rmcwd":
		return os.Remove(value)
	case "nnp":
		_, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1)
		return err
	case "bound":
		return cap.DropBound(cap.Value(number(value)))
	case "securebits":
		_, err := cap.Prctlw(unix.PR_SET_SECUREBITS, uintptr(number(value)))
		return err
	case "nosuid":
		if err := unix.Mount(value, value, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return unix.Mount("", value, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID, "")
	case "user":
		id := number(value)
		return errors.Join(syscall.Setgroups(nil), syscall.Setresgid(id, id, id), syscall.Setresuid(id, id, id))
	case "close":
		return unix.Close(number(value))
	case "queue": // n signals that remain pending
		for range number(value) {
			if err := unix.Tgkill(os.Getpid(), unix.Gettid(), 60); err != nil {
				return err
			}
		}
	case "argc0":
		argv0 = true
	default: // a limit: as=1000
		n, ok := map[string]int{
			"nofile": unix.RLIMIT_NOFILE, "as": unix.RLIMIT_AS, "fsize": unix.RLIMIT_FSIZE,
			"nproc": unix.RLIMIT_NPROC, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
			"core": unix.RLIMIT_CORE, "memlock": unix.RLIMIT_MEMLOCK,
		}[name]
		if !ok {
			return errors.New("no such change")
		}
		v := uint64(number(value))
		l := syscall.Rlimit{Cur: v, Max: v} // raw, since Go would start a thread, for which memory might be missing
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRLIMIT, uintptr(n), uintptr(unsafe.Pointer(&l)), 0); errno != 0 {
			return errno
		}
		return nil
	}
	return nil
}

func signals(list string) []syscall.Signal {
	var all []syscall.Signal
	for s := syscall.Signal(1); s <= 64; s++ {
		if list == "all" && s != unix.SIGKILL && s != unix.SIGSTOP {
			all = append(all, s)
		}
	}
	if list == "all" {
		return all
	}
	for s := range strings.SplitSeq(list, ",") {
		all = append(all, syscall.Signal(number(s)))
	}
	return all
}

// execute is a plain execve(2), which accepts a nil argv.
func execute(path string, argv []string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	var av unsafe.Pointer
	if argv != nil {
		ptrs, err := syscall.SlicePtrFromStrings(argv)
		if err != nil {
			return err
		}
		av = unsafe.Pointer(&ptrs[0])
	}
	ev, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p)), uintptr(av),
		uintptr(unsafe.Pointer(&ev[0])))
	return errno
}
