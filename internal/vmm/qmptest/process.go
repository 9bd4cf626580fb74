package qmptest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

// roleEnv has the test binary run as a QEMU: the value is its monitor's path, or empty for none.
const roleEnv = "VMNET_TEST_FAKE_QEMU"

// Main does not return in a process that Start has started. Call it first in TestMain.
func Main() {
	paths, is := os.LookupEnv(roleEnv)
	if !is {
		return
	}
	if err := run(strings.Fields(paths)); err != nil {
		fmt.Fprintln(os.Stderr, "fake QEMU:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// order is what a test asks of the process, one JSON object a line, and gets the State for.
type order struct{ Behaviour *Behaviour }

// run serves the monitors, and on stdin the test until that ends.
func run(paths []string) error {
	m := newMachine(guestName(os.Args))
	for _, path := range paths {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		go Serve(l, m.serve)
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		if err := out.Encode(m.state()); err != nil {
			return err
		}
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if o.Behaviour != nil {
			m.behave(*o.Behaviour)
		}
	}
}

// guestName reads the value of -name.
func guestName(argv []string) string {
	i := slices.Index(argv, "-name")
	if i < 0 || i+1 == len(argv) {
		return ""
	}
	return strings.TrimPrefix(argv[i+1], "guest=")
}

// Config says what QEMU to start.
type Config struct {
	Name     string     // -name guest=
	Monitors int        // how many -qmp sockets it has; 0 means one, and -1 none
	Args     []string   // further arguments, which only its command line shows
	Program  string     // argv[0]; empty means qemu-system-x86_64
	Files    []*os.File // that it inherits, from descriptor 3 on
}

// A QEMU is a process of the test binary that looks and answers like one. It runs until the test
// ends, or Kill.
type QEMU struct {
	PID     int
	Name    string
	Sockets []string // of its monitors

	tb  testing.TB
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

// Start starts a QEMU whose monitors listen.
func Start(tb testing.TB, c Config) *QEMU {
	tb.Helper()
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := c.Program
	if program == "" {
		program = "qemu-system-x86_64"
	}
	q := &QEMU{Name: c.Name, tb: tb}
	argv := []string{program, "-name", "guest=" + c.Name}
	for i := range max(c.Monitors, 1+min(c.Monitors, 0)) {
		path := filepath.Join(dir, fmt.Sprintf("%d.qmp", i))
		q.Sockets = append(q.Sockets, path)
		argv = append(argv, "-qmp", "unix:"+path+",server=on,wait=off")
	}
	q.cmd = exec.Command("/proc/self/exe")
	q.cmd.Args = append(argv, c.Args...)
	q.cmd.Env = append(os.Environ(), roleEnv+"="+strings.Join(q.Sockets, " "))
	q.cmd.Stderr, q.cmd.ExtraFiles = os.Stderr, c.Files
	stdin, err := q.cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := q.cmd.StdoutPipe()
	if err == nil {
		err = q.cmd.Start()
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(q.Kill)
	q.PID, q.in, q.out = q.cmd.Process.Pid, json.NewEncoder(stdin), json.NewDecoder(stdout)
	q.read() // its monitors listen by then
	return q
}

// Kill kills the process, as a crash or its user might, and reaps it.
func (q *QEMU) Kill() {
	if q.cmd.ProcessState != nil {
		return
	}
	_ = q.cmd.Process.Kill()
	_ = q.cmd.Wait()
}

// Pause stops the process until Resume: it neither answers nor ends.
func (q *QEMU) Pause() {
	q.tb.Helper()
	if err := q.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		q.tb.Fatal(err)
	}
	nstest.Eventually(q.tb, answerWithin, "all threads stand still", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", q.PID))
		return !slices.ContainsFunc(tasks, func(path string) bool {
			stat, _ := os.ReadFile(path)
			_, state, _ := strings.Cut(string(stat), ") ") // proc_pid_stat(5), field 3
			return !strings.HasPrefix(state, "T")
		})
	})
}

// Resume undoes Pause.
func (q *QEMU) Resume() {
	q.tb.Helper()
	if err := q.cmd.Process.Signal(unix.SIGCONT); err != nil {
		q.tb.Fatal(err)
	}
}

// Behave replaces the process's behaviour.
func (q *QEMU) Behave(b Behaviour) {
	q.tb.Helper()
	q.ask(order{&b})
}

// State returns what the process has now.
func (q *QEMU) State() State {
	q.tb.Helper()
	return q.ask(order{})
}

func (q *QEMU) ask(o order) State {
	q.tb.Helper()
	if err := q.in.Encode(o); err != nil {
		q.tb.Fatalf("fake QEMU %s: %v", q.Name, err)
	}
	return q.read()
}

// answerWithin bounds the wait for the process, on a loaded machine.
const answerWithin = 30 * time.Second

func (q *QEMU) read() (s State) {
	q.tb.Helper()
	late := time.AfterFunc(answerWithin, func() { _ = q.cmd.Process.Kill() })
	defer late.Stop()
	if err := q.out.Decode(&s); err != nil {
		q.tb.Fatalf("fake QEMU %s: %v", q.Name, err)
	}
	return s
}
