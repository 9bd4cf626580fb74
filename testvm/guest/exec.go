package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/testvm/agent"
)

// run runs a command and keeps the beginning of its output.
func run(ctx context.Context, c agent.Command) (agent.Output, error) {
	var stdout, stderr limited
	code, err := execute(ctx, c, &stdout, &stderr)
	return agent.Output{Stdout: stdout.buf.String(), Stderr: stderr.buf.String(), Code: code}, err
}

// stream runs a command and sends its output as it comes.
func stream(ctx context.Context, c agent.Command, send func(any)) (agent.Output, error) {
	code, err := execute(ctx, c,
		writer(func(p []byte) { send(agent.Part{Stdout: p}) }),
		writer(func(p []byte) { send(agent.Part{Stderr: p}) }))
	return agent.Output{Code: code}, err
}

// execute runs a command to its end; when ctx ends, its whole process group is killed.
func execute(ctx context.Context, c agent.Command, stdout, stderr io.Writer) (code int, err error) {
	if len(c.Argv) == 0 {
		return 0, errors.New("no command given")
	}
	name := c.Argv[0]
	path, err := lookPath(name, c)
	if err != nil {
		return 0, fmt.Errorf(
			"run %s: no such program in the guest, or no such directory (a tiny guest's tools are busybox's: install busybox-static on the host): %w",
			name, err)
	}
	cmd := exec.CommandContext(ctx, path, c.Argv[1:]...)
	cmd.Args[0] = name
	cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.Stdin), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // for children that hold its output open
	err = cmd.Run()
	exit := new(exec.ExitError)
	switch {
	case ctx.Err() != nil:
		return 0, fmt.Errorf("run %s: %w", name, context.Cause(ctx))
	case err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay):
		return 0, fmt.Errorf("run %s: %w", name, err)
	}
	return cmd.ProcessState.ExitCode(), nil
}

// lookPath finds a program by the PATH of the environment that the program will have, which
// exec.LookPath does not know.
func lookPath(name string, c agent.Command) (string, error) {
	if strings.Contains(name, "/") {
		return name, checkProgram(c.Dir, name)
	}
	path := os.Getenv("PATH")
	for _, v := range c.Env {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			path = value
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if file := filepath.Join(dir, name); filepath.IsAbs(file) && checkProgram("", file) == nil {
			return file, nil
		}
	}
	return "", exec.ErrNotFound
}

// checkProgram returns an error if the file name, relative to dir, cannot be executed.
func checkProgram(dir, file string) error {
	if !filepath.IsAbs(file) {
		file = filepath.Join("/", dir, file)
	}
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return err
	case info.IsDir() || info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s: %w", file, fs.ErrPermission)
	}
	return nil
}

// limited keeps the first agent.MaxOutput bytes.
type limited struct{ buf bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.buf.Write(p[:min(len(p), agent.MaxOutput-l.buf.Len())])
	return len(p), nil
}

// writer is an io.Writer that passes everything to a function.
type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}
