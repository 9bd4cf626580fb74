package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vmnet/internal/nstest"
	"vmnet/qmp"
)

// patience bounds waits for things that happen at once on an idle machine.
const patience = 20 * time.Second

// cmdExits is `exits N command...`: the command must exit with that status.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s exited with %d, want %d", args[1], got, want)
	}
}

// cmdEventually is `eventually REGEXP command...`: it repeats the command until its output matches,
// with ! until it does not match any longer.
func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] eventually REGEXP COMMAND...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	eventually(ts, args[0], func() bool {
		err := ts.Exec(args[1], args[2:]...)
		return err == nil && want.MatchString(ts.ReadFile("stdout")) != neg
	})
}

// eventually is nstest.Eventually for a script, which is not a testing.TB.
func eventually(ts *testscript.TestScript, what string, ok func() bool) {
	within := nstest.Patience(patience)
	for end := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) { // not a wait: a poll
		if time.Now().After(end) {
			ts.Fatalf("not within %v: %s", within, what)
		}
	}
}

const qemuProgram = "qemu-system-x86_64"

// guests are the QEMUs that a script has started, by the variable that holds their pid.
type guests map[string]*guest

type guest struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// cmdQEMU is `qemu PIDVAR argument...`: it starts a paused QEMU, sets $PIDVAR, and waits until its
// monitor listens on a unix socket. The QEMU ends with the script.
func cmdQEMU(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: qemu PIDVAR ARGUMENT...")
	}
	argv := append([]string{"-S", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "32", "-display", "none"},
		args[1:]...)
	g := &guest{cmd: exec.Command(qemuProgram, argv...), done: make(chan struct{})}
	g.cmd.Dir = ts.MkAbs(".")
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// Pdeathsig follows the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- g.cmd.Start()
		_ = g.cmd.Wait()
		close(g.done)
	}()
	ts.Check(<-started)
	ts.Defer(g.stop)
	ts.Setenv(args[0], strconv.Itoa(g.cmd.Process.Pid))
	ts.Value(guestsKey{}).(guests)[args[0]] = g
	for _, arg := range args {
		if path, ok := strings.CutPrefix(arg, "unix:"); ok {
			path, _, _ = strings.Cut(path, ",")
			awaitListener(ts, path)
		}
	}
}

type guestsKey struct{}

func awaitListener(ts *testscript.TestScript, path string) {
	eventually(ts, "QEMU listens", func() bool {
		conn, err := net.Dial("unix", ts.MkAbs(path))
		if err == nil {
			ts.Check(conn.Close())
		}
		return err == nil
	})
}

func (g *guest) stop() {
	_ = g.cmd.Process.Kill()
	<-g.done
}

// cmdStopQEMU is `stopqemu PIDVAR`: it kills the QEMU that qemu has started.
func cmdStopQEMU(ts *testscript.TestScript, neg bool, args []string) {
	all := ts.Value(guestsKey{}).(guests)
	if neg || len(args) != 1 || all[args[0]] == nil {
		ts.Fatalf("usage: stopqemu PIDVAR")
	}
	all[args[0]].stop()
}

// cmdQuery is `query SOCKET COMMAND`: it prints QEMU's reply.
func cmdQuery(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: query SOCKET COMMAND")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := qmp.Dial(ctx, ts.MkAbs(args[0]))
	ts.Check(err)
	defer conn.Close()
	var answer json.RawMessage
	ts.Check(conn.Execute(ctx, args[1], nil, &answer))
	fmt.Fprintf(ts.Stdout(), "%s\n", answer)
}

// cmdHold is `hold SOCKET`: it waits until QEMU serves it on that monitor, and stays connected
// until the script ends.
func cmdHold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hold SOCKET")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	ts.Check(conn.SetReadDeadline(time.Now().Add(patience)))
	_, err = conn.Read(make([]byte, 1)) // the greeting
	ts.Check(err)
}
