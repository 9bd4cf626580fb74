// Package tool runs the programs that networks are made with, in their network namespace.
package tool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"vmnet/internal/kernel/netns"
)

// timeout bounds one run: the kernel may let it wait for others that change rules.
const timeout = 30 * time.Second

// maxOutput bounds what is read of a program: a ruleset of 100,000 rules.
const maxOutput = 64 << 20

// maxWords bounds what is kept of a program's messages, in bytes.
const maxWords = 4096

// sbin is where programs are that PATH of an ordinary login lacks.
var sbin = []string{"/usr/sbin", "/sbin"}

// Find returns the path of a program for administrators. pkg is the Debian package that has it,
// for the error.
func Find(program, pkg string) (string, error) {
	path, err := exec.LookPath(program)
	for _, dir := range sbin {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, program))
	}
	if err != nil {
		return "", fmt.Errorf("%s %w (apt install %s)", program, ErrNotInstalled, pkg)
	}
	return path, nil
}

// ErrNotInstalled is matched by the error for a program that the machine lacks.
var ErrNotInstalled = errors.New("is not installed")

// Failure is the error for a program that has failed.
type Failure struct {
	Line  string // the program and its arguments
	Words string // what it said, to stderr or else to stdout
	Err   error
}

// Error returns the command line, the exit status, and the first line that the program said.
func (f *Failure) Error() string {
	line, _, _ := strings.Cut(f.Words, "\n")
	return fmt.Sprintf("%s: %v: %s", f.Line, f.Err, line)
}

// Unwrap returns Err.
func (f *Failure) Unwrap() error { return f.Err }

// Run runs a program in ns with that standard input, and returns its standard output. An error of
// the program is a *Failure.
func Run(ctx context.Context, ns *netns.NS, input string, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, words := &bounded{most: maxOutput}, &bounded{most: maxWords}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = strings.NewReader(input), out, words, time.Second
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	err := ns.Do(cmd.Run)
	line := strings.Join(append([]string{filepath.Base(argv[0])}, argv[1:]...), " ")
	switch {
	case errors.Is(err, errTooMuch):
		return nil, fmt.Errorf("%s: it prints more than %d bytes", line, maxOutput)
	case err != nil:
		said := strings.TrimSpace(words.b.String())
		if said == "" {
			said = strings.TrimSpace(string(out.b.Bytes()[:min(out.b.Len(), maxWords)]))
		}
		return nil, &Failure{line, said, err}
	}
	return out.b.Bytes(), nil
}

// bounded keeps what is written to it, up to most bytes; more is an error.
type bounded struct {
	b    bytes.Buffer
	most int
}

var errTooMuch = errors.New("too much output")

func (w *bounded) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > w.most {
		return 0, errTooMuch
	}
	return w.b.Write(p)
}

var _ io.Writer = (*bounded)(nil)
