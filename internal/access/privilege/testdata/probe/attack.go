package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// attack is a caller that stops the program at random moments, time and again, and checks whether
// it can write to the program's memory while a thread of it has a capability. It prints how often a
// thread had one, and how often the memory was writable.
//
// How long a thread has one depends on the machine and its load: a stop that is too late shortens
// the time within which the next one comes, any other lengthens it, so that about half of them are
// in time.
func attack(argv []string) error {
	const many, few = 100, 10 // a busy machine has time for a few
	privileged, got, within := 0, 0, 3*time.Millisecond
	start := time.Now()
	for took := time.Duration(0); took < 15*time.Second; took = time.Since(start) {
		if privileged == many || privileged >= few && took > 3*time.Second {
			break
		}
		c := exec.Command(argv[0], argv[1:]...)
		if err := c.Start(); err != nil { // returns after the exec, from which on it has any
			return err
		}
		time.Sleep(rand.N(within))
		has, may := stopped(c.Process.Pid)
		_ = c.Process.Kill()
		_ = c.Wait()
		if !has {
			within = max(within*9/10, time.Microsecond)
			continue
		}
		within = min(within*10/9, time.Second)
		privileged++
		if may {
			got++
		}
	}
	fmt.Println("attack", privileged, got)
	return nil
}

// stopped stops a process. has reports whether one of its threads has a capability then, may
// whether its memory is writable.
func stopped(pid int) (has, may bool) {
	_ = unix.Kill(pid, unix.SIGSTOP)
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		return false, false
	}
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*")
	for _, task := range tasks {
		status, _ := os.ReadFile(task + "/status")
		_, caps, _ := strings.Cut(string(status), "\nCapPrm:\t")
		caps, _, _ = strings.Cut(caps, "\n")
		has = has || strings.Trim(caps, "0") != ""
		if fd, err := syscall.Open(task+"/mem", syscall.O_RDWR, 0); err == nil {
			_ = syscall.Close(fd)
			may = true
		}
	}
	return has, may
}
