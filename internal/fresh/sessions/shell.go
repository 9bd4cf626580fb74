package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// shell is an interactive login shell on a terminal of its own.
type shell struct {
	tty    *os.File // the terminal's other side
	cmd    *exec.Cmd
	chunks chan []byte // what comes out of it; closed at its end
	log    io.Writer   // gets that as well

	text    string // output since the last prompt but one
	command string // the line that wrote it
}

// promptMark is the sequence that bash, and all shells that it starts, write before each prompt: it
// marks the end of a command and its status for terminals.
var promptMark = regexp.MustCompile("\x1b\\]133;D;([0-9]+)\a")

const promptCommand = `printf '\033]133;D;%d\a' $?`

// prompt matches the whole prompt. bash reads the terminal only after it has written that. Lines in
// between report ended jobs, or come from programs in the background.
var prompt = regexp.MustCompile(promptMark.String() + `((?:[^\n]*\n)*?)[^\n]*?[#$] `)

// startShell starts a shell and waits for its first prompt. Its output also goes to log.
func startShell(log io.Writer) (*shell, error) {
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	slave, err := openSlave(tty)
	if err != nil {
		_ = tty.Close()
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	defer slave.Close()
	s := &shell{tty: tty, log: log, chunks: make(chan []byte)}
	s.cmd = exec.Command("bash", "-l", "-i")
	// A dumb terminal keeps readline from drawing; nothing is read before a line is typed.
	s.cmd.Env = append(os.Environ(), "TERM=dumb", "HISTFILE=", "PROMPT_COMMAND="+promptCommand)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		_ = tty.Close()
		return nil, err
	}
	go s.copy()
	if err := s.await(lineTime); err != nil {
		s.stop()
		return nil, fmt.Errorf("wait for the first prompt: %w", err)
	}
	return s, nil
}

// openSlave opens the slave side of a pseudoterminal. It is wide, so that no line wraps.
func openSlave(tty *os.File) (*os.File, error) {
	raw, err := tty.SyscallConn() // Fd would make reads that Close does not end
	if err != nil {
		return nil, err
	}
	var n int
	controlErr := raw.Control(func(p uintptr) {
		fd := int(p)
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0),
			unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 1000}))
	})
	if err := errors.Join(err, controlErr); err != nil {
		return nil, err
	}
	return os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
}

// copy passes on the terminal's output until all programs on it have exited.
func (s *shell) copy() {
	defer close(s.chunks)
	for {
		chunk := make([]byte, 4096)
		n, err := s.tty.Read(chunk)
		if n > 0 {
			s.chunks <- chunk[:n]
		}
		if err != nil {
			return
		}
	}
}

// read reads for at most that time, and reports whether the shell has ended.
func (s *shell) read(within time.Duration) (ended bool) {
	select {
	case chunk, ok := <-s.chunks:
		if !ok {
			return true
		}
		s.text += string(chunk)
		_, _ = s.log.Write(promptMark.ReplaceAll(chunk, nil))
	case <-time.After(within):
	}
	return false
}

// await waits for a prompt, and returns an error for a status other than 0. io.EOF is the shell's
// exit.
func (s *shell) await(within time.Duration) error {
	for end := time.Now().Add(within); time.Now().Before(end); {
		if mark := prompt.FindStringSubmatch(s.text); mark != nil {
			if mark[1] != "0" {
				return fmt.Errorf("exit status %s", mark[1])
			}
			return nil
		}
		if s.read(time.Second) {
			return io.EOF
		}
	}
	return fmt.Errorf("it does not end within %v", within)
}

// enter types a line and waits for the next prompt.
func (s *shell) enter(command string, within time.Duration) error {
	s.text, s.command = "", command
	if _, err := io.WriteString(s.tty, command+"\r"); err != nil {
		return err
	}
	return s.await(within)
}

// said returns the output of the last line so far, including output after the prompt.
func (s *shell) said() string {
	text := strings.ReplaceAll(s.text, "\r\n", "\n")
	if _, after, found := strings.Cut(text, s.command); found {
		_, text, _ = strings.Cut(after, "\n")
	}
	return prompt.ReplaceAllString(text, "\n${2}")
}

// stop ends the shell and all programs that it has started.
func (s *shell) stop() {
	_ = unix.Kill(-s.cmd.Process.Pid, unix.SIGHUP)
	_ = s.tty.Close()
	go func() {
		for range s.chunks {
		}
	}()
	timer := time.AfterFunc(5*time.Second, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait()
	timer.Stop()
}
