package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// supervised is the argument, after libvirt's, that marks a child.
const supervised = "supervised"

// childArgs returns libvirt's arguments, and whether this process is the child.
func childArgs(args []string) (own []string, isChild bool) {
	if len(args) == 5 && args[4] == supervised {
		return args[:4], true
	}
	return args, false
}

// maxTold bounds how much of a child's stderr is passed on, in bytes: the first lines of a crash.
const maxTold = 1000

// runChild runs this program again as a child, which ends when its parent does. The child reports
// its failures itself; runChild returns an error for a crash.
func runChild(args []string, xml string, stderr io.Writer) error {
	runtime.LockOSThread() // Pdeathsig applies to the thread that starts the child
	defer runtime.UnlockOSThread()
	var told bytes.Buffer
	cmd := exec.Command("/proc/self/exe", append(append([]string{}, args...), supervised)...)
	cmd.Stdin, cmd.Stderr = strings.NewReader(xml), &told
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) && exit.ExitCode() == 1 {
		_, _ = stderr.Write(told.Bytes())
		return nil
	}
	return fmt.Errorf("%w: %s", err, told.Next(maxTold))
}
