package tapmgr_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
)

// forgery is a process that a user makes look like root's guest: a set-user-ID program with
// the command line of a QEMU, which blocks, as nobody reads its output. It
// inherits a monitor's listening socket, which another process of the user serves.
type forgery struct {
	Program string
	Argv    []string
	Listen  string // path of the socket
}

// forgeQEMU starts one as user, and waits until it runs its program.
func (h *host) forgeQEMU(program, vm string, args ...string) (pid int) {
	h.Helper()
	dir, err := os.MkdirTemp("", "forge")
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, user, user))
	}
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = os.RemoveAll(dir) })
	f := forgery{Program: program, Listen: filepath.Join(dir, "evil.qmp")}
	f.Argv = append([]string{
		"qemu-system-x86_64", "-name", "guest=" + vm, "-qmp",
		"unix:" + f.Listen + ",server=on,wait=off",
	}, args...)
	cmd := h.command(order{Forge: &f})
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
	stdin, err := cmd.StdinPipe() // its end ends who serves the monitor
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _, _, _ = stdin.Close(), cmd.Process.Kill(), cmd.Wait() })
	nstest.Eventually(h, 20*time.Second, "the forged QEMU", func() bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		return err == nil && strings.HasPrefix(string(line), f.Argv[0]+"\x00") && asleep(cmd.Process.Pid)
	})
	return cmd.Process.Pid
}

// asleep reports whether a process waits for something (proc_pid_stat(5), field 3).
func asleep(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, found := strings.Cut(string(stat), ") ")
	return err == nil && found && strings.HasPrefix(state, "S")
}

// setuidCopy is this test binary as a set-user-ID program of root, which takes root's real id too.
func setuidCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "forge")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "program")
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, program, 0o755), os.Chmod(path, 0o755|os.ModeSetuid))
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// pretend is what the processes of a forgery do.
func (o order) pretend() int {
	var err error
	switch {
	case o.Forge != nil:
		err = o.Forge.run()
	case o.Root:
		err = becomeRoot()
	default:
		err = answerQMP()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// run becomes the program.
func (f *forgery) run() error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: f.Listen, Net: "unix"})
	if err != nil {
		return err
	}
	file, err := l.File()
	if err != nil {
		return err
	}
	text, err := json.Marshal(order{Answer: true})
	if err != nil {
		return err
	}
	server := exec.Command("/proc/self/exe")
	server.Env = append(os.Environ(), helperEnv+"="+string(text))
	server.Stdin, server.ExtraFiles = os.Stdin, []*os.File{file}
	if err := server.Start(); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	full := int(w.Fd()) // and blocking from here on
	if err := unix.SetNonblock(full, true); err != nil {
		return err
	}
	for err = nil; err == nil; {
		_, err = unix.Write(full, make([]byte, 1))
	}
	if text, err = json.Marshal(order{Root: true}); err != nil {
		return err
	}
	for _, fd := range []int{int(r.Fd()), int(file.Fd())} { // both stay open in the program
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return err
		}
	}
	if err := errors.Join(unix.SetNonblock(full, false), unix.Dup2(full, 1), unix.Dup2(full, 2)); err != nil {
		return err
	}
	return syscall.Exec(f.Program, f.Argv, append(os.Environ(), helperEnv+"="+string(text)))
}

// becomeRoot is what some set-user-ID programs do before they say anything.
func becomeRoot() error {
	if err := syscall.Setuid(0); err != nil {
		return err
	}
	_, err := os.Stderr.WriteString("usage")
	return err
}

// answerQMP serves a monitor that says yes to everything, until stdin ends.
func answerQMP() error {
	l, err := net.FileListener(os.NewFile(3, "monitor"))
	if err != nil {
		return err
	}
	go qmptest.Serve(l.(*net.UnixListener), func(s *qmptest.Session) {
		if s.Negotiate() {
			s.AnswerAll()
		}
	})
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
