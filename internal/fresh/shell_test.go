// Package fresh has the scripts of `make fresh`, and tests of the shells that the documents use.
package fresh

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const top = "../.." // of the source tree

// shellTime bounds the time in which a shell that cannot start must report that.
const shellTime = 30 * time.Second

// tree is a copy of the shells' scripts, with stand-ins for programs of these names.
func tree(t *testing.T, programs map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, file := range []string{"docs/private-shell.sh", "docs/libvirt-shell.sh", "libvirt/libvirttest/private.sh"} {
		text, err := os.ReadFile(filepath.Join(top, file))
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755),
				os.WriteFile(filepath.Join(dir, file), text, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range programs {
		path := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755),
			os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// typed runs a shell of the tree in dir, types these lines into it, and returns its output.
func typed(t *testing.T, dir, script string, lines ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), shellTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", filepath.Join(dir, script))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "fake")+":"+os.Getenv("PATH"))
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestShellThatCannotBeHad: if the shell cannot start, none of the lines meant for it is run.
func TestShellThatCannotBeHad(t *testing.T) {
	root := map[string]string{"fake/id": "echo 0", "bin/vmnet": ""}
	with := func(more map[string]string) map[string]string {
		all := map[string]string{}
		for _, m := range []map[string]string{root, more} {
			for k, v := range m {
				all[k] = v
			}
		}
		return all
	}
	for name, test := range map[string]struct {
		script   string
		programs map[string]string
		says     string
	}{
		"not root": {
			"docs/private-shell.sh",
			map[string]string{"fake/id": "echo 1000", "bin/vmnet": ""},
			"run it as root",
		},
		"not built": {"docs/private-shell.sh", map[string]string{"fake/id": "echo 0"}, "make setup build"},
		"no namespaces": {
			"docs/private-shell.sh",
			with(map[string]string{"fake/unshare": "echo 'unshare failed: Operation not permitted' >&2; exit 1"}),
			"Operation not permitted",
		},
		"no namespaces, with libvirtd": {"docs/libvirt-shell.sh", with(map[string]string{
			"fake/unshare":  "echo 'unshare failed: Operation not permitted' >&2; exit 1",
			"fake/libvirtd": "", "fake/virsh": "",
		}), "Operation not permitted"},
	} {
		t.Run(name, func(t *testing.T) { notRun(t, tree(t, test.programs), test.script, test.says) })
	}
}

// TestLiveShellWithoutLibvirtd: if libvirtd does not start, the shell ends at once with its
// message.
func TestLiveShellWithoutLibvirtd(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	notRun(t, tree(t, map[string]string{
		"bin/vmnet": "", "fake/virsh": "exit 1", "fake/libvirtd": "echo 'Failed to parse user' >&2; exit 6",
	}), "docs/libvirt-shell.sh", "Failed to parse user")
}

// notRun types into a shell that cannot start.
func notRun(t *testing.T, dir, script, says string) {
	t.Helper()
	trace := filepath.Join(dir, "trace")
	out, err := typed(t, dir, script, "echo run >"+trace, "touch "+trace+"; exit", "touch "+trace)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("it ends with %v, want status 1", err)
	}
	for _, want := range []string{says, "no further line is run", "not run: echo run"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if _, err := os.Stat(trace); err == nil {
		t.Errorf("a line was run:\n%s", out)
	}
}

// TestLivePrivateShell runs a line in the shell, and a command instead of the shell.
func TestLivePrivateShell(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	dir := tree(t, map[string]string{"bin/vmnet": "echo ours"})
	out, err := typed(t, dir, "docs/private-shell.sh", "vmnet; cd /sys/class/net; ip -o link | wc -l; cat /proc/1/comm",
		"touch /run/trace", "exit 3")
	if err != nil || !strings.Contains(out, "ours\n1\nsh\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat("/run/trace"); err == nil {
		t.Error("its /run is the machine's")
	}
	cmd := exec.Command("sh", filepath.Join(dir, "docs/private-shell.sh"), "sh", "-c", "exit 7")
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("a command's status: %v, want 7", err)
	}
}
