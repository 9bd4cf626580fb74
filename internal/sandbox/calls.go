package sandbox

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
)

// calls are the system calls that a switch makes, whatever their arguments. An architecture that
// lacks one of them has a newer one that is listed as well.
var calls = []string{
	// Frames and messages, through files that are open. They come first: kernels before Linux 5.11
	// compare a call with the list from its beginning, each time.
	"read", "write", "epoll_pwait", "futex", "recvmmsg", "sendmmsg", "readv", "writev", "io_uring_enter",
	"epoll_wait", "recvfrom", "sendto", "recvmsg", "sendmsg", "preadv2", "pwritev2", "poll", "ppoll", "lseek",
	"io_uring_setup", "io_uring_register",

	// Go's runtime: memory, threads, signals, time, its poller.
	"munmap", "madvise", "mincore", "brk", "futex_time64", "exit", "exit_group", "sched_yield",
	"sched_getaffinity", "sched_setaffinity", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
	"restart_syscall", "set_robust_list", "rseq", "gettid", "getpid", "nanosleep", "clock_nanosleep",
	"clock_gettime", "clock_getres", "gettimeofday", "timer_create", "timer_settime", "timer_delete", "setitimer",
	"getrandom", "epoll_create1", "epoll_ctl", "epoll_pwait2", "eventfd2", "pipe2",

	// What a file is, and its settings.
	"close", "dup", "dup3", "fcntl", "ioctl", "fstat", "newfstatat", "fstatat64", "statx", "fstatfs", "readlinkat",
	"flock", "getsockopt", "setsockopt", "getsockname", "getpeername", "bind", "listen", "accept4", "connect",
	"shutdown", "memfd_create", "ftruncate",

	// Who the process and its clients are.
	"getuid", "geteuid", "getgid", "getegid", "capget", "pidfd_open", "prlimit64", "getrlimit", "uname",

	"unlinkat", "getcwd",

	// Old forms that newer architectures lack.
	"unlink", "rmdir", "readlink", "stat", "lstat",
}

// The arguments that decide whether a call is allowed (the headers below include/uapi).
const (
	protExec     = 4          // PROT_EXEC, asm-generic/mman-common.h
	writes       = 3          // O_WRONLY and O_RDWR, asm-generic/fcntl.h
	creates      = 0o100      // O_CREAT
	newThread    = 0x10000    // CLONE_THREAD, linux/sched.h
	setVMA       = 0x53564d41 // PR_SET_VMA, linux/prctl.h: Go names its memory
	unixSocket   = 1          // AF_UNIX, linux/socket.h
	noSignal     = 0          // kill(2) with it sends none
	mapCalls     = 4          // BPF_MAP_LOOKUP_ELEM, _UPDATE_ELEM, _DELETE_ELEM, _GET_NEXT_KEY: 1 to 4, linux/bpf.h
	objectInfo   = 15         // BPF_OBJ_GET_INFO_BY_FD
	enosys       = 38         // asm-generic/errno.h; the C library then makes a thread by clone
	firstArg     = 0
	secondArg    = 1
	thirdArg     = 2
	pidfdsSignal = secondArg
)

// errNoTable says that package seccomp does not know the system calls of this architecture.
var errNoTable = errors.New("no table of the system calls")

// allowed returns the calls that pass. None of them makes memory executable, opens a file to write,
// executes a program, or signals another process. bpf(2) reads and changes maps that are open, and
// makes nothing. But a filter does not see the operations of
// io_uring, by which taps are written to. The second group is clone3, whose flags a filter cannot
// read.
func allowed(pid uint64) ([]seccomp.SyscallGroup, error) {
	info, err := arch.GetInfo("")
	if err != nil || len(info.SyscallNames) == 0 {
		return nil, fmt.Errorf("%w of %s", errNoTable, runtime.GOARCH)
	}
	has := func(name string) bool { _, ok := info.SyscallNames[name]; return ok }
	g := seccomp.SyscallGroup{Action: seccomp.ActionAllow}
	for _, name := range calls {
		if has(name) {
			g.Names = append(g.Names, name)
		}
	}
	for _, c := range []seccomp.NameWithConditions{
		when("mmap", thirdArg, seccomp.BitsNotSet, protExec),
		when("mprotect", thirdArg, seccomp.BitsNotSet, protExec),
		when("openat", thirdArg, seccomp.BitsNotSet, writes|creates),
		when("clone", firstArg, seccomp.BitsSet, newThread),
		when("prctl", firstArg, seccomp.Equal, setVMA),
		when("socket", firstArg, seccomp.Equal, unixSocket),
		when("socketpair", firstArg, seccomp.Equal, unixSocket),
		when("tgkill", firstArg, seccomp.Equal, pid),
		{Name: "bpf", Conditions: seccomp.ArgumentConditions{
			{Argument: firstArg, Operation: seccomp.GreaterOrEqual, Value: 1},
			{Argument: firstArg, Operation: seccomp.LessOrEqual, Value: mapCalls},
		}},
		when("bpf", firstArg, seccomp.Equal, objectInfo),
		when("pidfd_send_signal", pidfdsSignal, seccomp.Equal, noSignal),
	} {
		if has(c.Name) {
			g.NamesWithCondtions = append(g.NamesWithCondtions, c)
		}
	}
	other := seccomp.SyscallGroup{Names: []string{"clone3"}, Action: seccomp.ActionErrno | enosys}
	return []seccomp.SyscallGroup{g, other}, nil
}

func when(name string, arg uint32, op seccomp.Operation, value uint64) seccomp.NameWithConditions {
	return seccomp.NameWithConditions{
		Name:       name,
		Conditions: seccomp.ArgumentConditions{{Argument: arg, Operation: op, Value: value}},
	}
}
