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
func attack(args []string) error {
	within, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	privileged, got := 0, 0
	for end := time.Now().Add(3 * time.Second); privileged < 100 && time.Now().Before(end); {
		c := exec.Command(args[1], args[2:]...)
		if err := c.Start(); err != nil {
			return err
		}
		time.Sleep(rand.N(within)) // sooner or later
		has, may := stopped(c.Process.Pid)
		_ = c.Process.Kill()
		_ = c.Wait()
		if has {
			privileged++
			if may {
				got++
			}
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
