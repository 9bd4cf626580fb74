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

// supervised is the argument behind those of libvirt that tells a child that it is one.
const supervised = "supervised"

// childArgs are libvirt's arguments.
func childArgs(args []string) (own []string, isChild bool) {
	if len(args) == 5 && args[4] == supervised {
		return args[:4], true
	}
	return args, false
}

// maxTold bounds what is passed on of a child's stderr, in bytes: of a crash, the first lines.
const maxTold = 1000

// runChild calls this program again and waits for it. It ends with us. A failure it has told itself; a crash is an error.
func runChild(args []string, xml string, stderr io.Writer) error {
	runtime.LockOSThread() // Pdeathsig is about the thread that starts it
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
