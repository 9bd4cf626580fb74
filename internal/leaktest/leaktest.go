// Package leaktest runs a package's tests apart from the machine's other
// processes and settings, and fails them when they leave goroutines, fds,
// processes, links or files behind.
package leaktest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The main thread is what /proc calls the process, so only the main goroutine runs on it: a test's
// goroutine that enters a namespace and ends takes its thread along, but Go cannot end this one.
func init() { runtime.LockOSThread() }

// Main runs the tests as described at Enclose, and exits: call it from TestMain. The leak checks
// run only if the tests passed.
func Main(m *testing.M) { run(m, false) }

// MainInUserNS is Main for a package whose tests need only namespaces of their own, not root's
// privileges on the machine: an ordinary user's tests run in a user namespace with the same mount,
// pid, network and IPC namespaces as root's, in which they are root. See nstest.NewInUserNS for the
// machines that refuse it. Tests that need root itself ask nstest.RequireRoot.
func MainInUserNS(m *testing.M) { run(m, true) }

func run(m *testing.M, ownUserNS bool) {
	enclose(ownUserNS)
	before := openFiles()
	code := m.Run()
	if code == 0 {
		if err := check(before); err != nil {
			fmt.Fprintln(os.Stderr, "leaktest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// check waits up to two seconds for things that end asynchronously.
func check(before map[string]string) error {
	if err := goleak.Find(); err != nil {
		return err
	}
	var err error
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = leaked(before); err == nil {
			return nil
		}
	}
	return err
}

func leaked(before map[string]string) error {
	for fd, target := range openFiles() {
		if _, ok := before[fd]; !ok {
			return fmt.Errorf("fd %s is still open: %s", fd, target)
		}
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		if pids, _ := os.ReadFile(t); len(strings.TrimSpace(string(pids))) > 0 {
			return fmt.Errorf("child processes still run: %s", pids)
		}
	}
	return nil
}

// openFiles maps each open fd to its target, without those that the Go runtime opens once and
// keeps.
func openFiles() map[string]string {
	files := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" ||
			strings.HasPrefix(target, "anon_inode:[pidfd") {
			continue
		}
		files[e.Name()] = target
	}
	return files
}
