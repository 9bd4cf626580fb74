// Package nft runs nft(8), and reads what it prints of a ruleset.
package nft

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

// timeout bounds one run of nft: the kernel may let it wait for other transactions.
const timeout = 30 * time.Second

// maxOutput bounds what is read of nft: a ruleset of 100,000 rules.
const maxOutput = 64 << 20

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
		return "", fmt.Errorf("%s is not installed (apt install %s)", program, pkg)
	}
	return path, nil
}

// Apply runs the commands of text in ns, all in one transaction or none.
func Apply(ctx context.Context, ns *netns.NS, text string) error {
	_, err := run(ctx, ns, text, "-f", "-")
	return err
}

// Check reports whether the kernel of this machine would take the commands of text in ns.
func Check(ctx context.Context, ns *netns.NS, text string) error {
	_, err := run(ctx, ns, text, "-c", "-f", "-")
	return err
}

// ListTable returns a table as Apply takes it.
func ListTable(ctx context.Context, ns *netns.NS, family, table string) (string, error) {
	out, err := run(ctx, ns, "", "list", "table", family, table)
	return string(out), err
}

// List reads the whole ruleset of ns.
func List(ctx context.Context, ns *netns.NS) (*Ruleset, error) {
	out, err := run(ctx, ns, "", "-j", "list", "ruleset")
	if err != nil {
		return nil, err
	}
	return Parse(out)
}

// run runs nft in ns with that standard input.
func run(ctx context.Context, ns *netns.NS, input string, args ...string) ([]byte, error) {
	program, err := Find("nft", "nftables")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, words := &bounded{most: maxOutput}, &bounded{most: 4096}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), out, words
	cmd.Env = []string{"LC_ALL=C"}
	err = ns.Do(cmd.Run)
	switch {
	case errors.Is(err, errTooMuch):
		return nil, fmt.Errorf("nft %s: it prints more than %d bytes", strings.Join(args, " "), maxOutput)
	case err != nil:
		return nil, fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, explain(words.b.String()))
	}
	return out.b.Bytes(), nil
}

// explain returns the first line of what nft says, with the cure where there is one.
func explain(words string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(words), "\n")
	switch {
	case strings.Contains(line, "Operation not permitted"):
		line += " (needs CAP_NET_ADMIN)"
	case strings.Contains(line, "Operation not supported") && strings.Contains(words, "ibrname"):
		line += " (isolated networks need the kernel's module nft_meta_bridge: modprobe nft_meta_bridge)"
	case strings.Contains(line, "Operation not supported"):
		line += " (the kernel lacks nftables, or a module of it: modprobe nf_tables nft_nat nft_masq nft_fib_inet)"
	case strings.Contains(line, "syntax error"):
		line += " (vmnet needs nftables 1.0 or newer: nft --version)"
	}
	return line
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
