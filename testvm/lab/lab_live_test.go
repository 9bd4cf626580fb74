package lab_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

func TestLiveHost(t *testing.T) {
	h := lab.StartT(t, lab.Config{Modules: []string{"dummy", "vhost_net"}})
	for name, test := range map[string]func(*testing.T, *lab.Host){
		"modules":                   testModules,
		"status and output":         testStatus,
		"environment":               testEnvironment,
		"output comes at once":      testStreaming,
		"much output":               testMuchOutput,
		"a broken writer":           testBrokenWriter,
		"the end of ctx":            testContext,
		"writes stay in there":      testWritesStay,
		"no such program":           testNoSuchProgram,
		"commands at the same time": testSameTime,
	} {
		t.Run(name, func(t *testing.T) { test(t, h) })
	}
}

func testModules(t *testing.T, h *lab.Host) {
	out, err := h.Output(t.Context(), "lsmod")
	if err != nil || !strings.Contains(out, "\ndummy ") || !strings.Contains(out, "\nvhost_net ") {
		t.Errorf("lsmod: %v: %s", err, out)
	}
	if err := h.LoadModules(t.Context(), "dummy", "veth"); err != nil {
		t.Error(err)
	}
	if err := h.LoadModules(t.Context(), "no_such_module"); err == nil ||
		!strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("got %v", err)
	}
}

func testStatus(t *testing.T, h *lab.Host) {
	var stdout, stderr bytes.Buffer
	c := lab.Command{
		Argv: []string{"sh", "-c", "cat; pwd; echo bad >&2; exit 7"}, Dir: "/etc", Stdin: "in\n",
		Stdout: &stdout, Stderr: &stderr,
	}
	status, err := h.Run(t.Context(), c)
	if err != nil || status != 7 || stdout.String() != "in\n/etc\n" || stderr.String() != "bad\n" {
		t.Errorf("status %d, %v, %q, %q", status, err, stdout.String(), stderr.String())
	}
	if status, err := h.Run(t.Context(), lab.Command{Argv: []string{"sh", "-c", "kill -9 $$"}}); err != nil ||
		status != -1 {
		t.Errorf("killed: status %d, %v", status, err)
	}
	if _, err := h.Output(t.Context(), "sh", "-c", "echo why >&2; exit 3"); err == nil ||
		!strings.Contains(err.Error(), "exit status 3: why") {
		t.Errorf("got %v", err)
	}
}

func testEnvironment(t *testing.T, h *lab.Host) {
	t.Setenv("LAB_TEST", "ours")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/0")
	out, err := h.Output(t.Context(), "sh", "-c", "echo $LAB_TEST,$XDG_RUNTIME_DIR")
	if err != nil || out != "ours,\n" {
		t.Errorf("got %q, %v", out, err)
	}
	// The program is found by the command's own PATH.
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/lab-tool", []byte("#!/bin/sh\necho $A\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	status, err := h.Run(t.Context(),
		lab.Command{Argv: []string{"lab-tool"}, Env: []string{"A=1", "PATH=" + dir}, Stdout: &stdout})
	if err != nil || status != 0 || stdout.String() != "1\n" {
		t.Errorf("status %d, %v, %q", status, err, stdout.String())
	}
}

func testStreaming(t *testing.T, h *lab.Host) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := h.Run(ctx, lab.Command{Argv: []string{"sh", "-c", "echo first; sleep 1000"}, Stdout: in})
		_ = in.Close()
		ended <- err
	}()
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil || string(line[:n]) != "first\n" {
		t.Errorf("read %q, %v", line[:n], err)
	}
	if ctx.Err() != nil {
		t.Error("the output came only when the time was over")
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func testMuchOutput(t *testing.T, h *lab.Host) {
	var stdout bytes.Buffer
	status, err := h.Run(t.Context(), lab.Command{Argv: []string{"seq", "1", "400000"}, Stdout: &stdout})
	if err != nil || status != 0 {
		t.Fatalf("status %d, %v", status, err)
	}
	if lines := strings.Split(stdout.String(), "\n"); len(lines) != 400001 || lines[399999] != "400000" {
		t.Errorf("%d lines", len(lines))
	}
}

type brokenWriter struct{}

var errBroken = errors.New("broken")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func testBrokenWriter(t *testing.T, h *lab.Host) {
	if _, err := h.Run(t.Context(), lab.Command{Argv: []string{"echo", "x"}, Stdout: brokenWriter{}}); !errors.Is(err,
		errBroken) {
		t.Errorf("got %v", err)
	}
}

func testContext(t *testing.T, h *lab.Host) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := h.Run(ctx, lab.Command{Argv: []string{"sh", "-c", "sleep 4321 & sleep 4321"}}); !errors.Is(err,
		context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	nstest.Eventually(t, 60*time.Second, "the command's child ends", func() bool {
		out, err := h.Output(t.Context(), "ps", "-eo", "args")
		if err != nil {
			t.Fatal(err)
		}
		return !slices.Contains(strings.Split(out, "\n"), "sleep 4321")
	})
}

func testWritesStay(t *testing.T, h *lab.Host) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Output(t.Context(), "sh", "-c",
		`cat "$0" >&2; echo theirs > "$0"; echo new > "$0.new"; rm -rf /etc/passwd`, name); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{name: "theirs\n", name + ".new": "new\n"} {
		if got, err := h.ReadFile(t.Context(), file); err != nil || string(got) != want {
			t.Errorf("%s inside: %q, %v", file, got, err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "ours" {
		t.Errorf("%s here: %q, %v", name, got, err)
	}
	for file, there := range map[string]bool{name + ".new": false, "/etc/passwd": true} {
		if _, err := os.Stat(file); (err == nil) != there {
			t.Errorf("%s here: %v", file, err)
		}
	}
	if _, err := h.ReadFile(t.Context(), "/etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the removed file inside: %v", err)
	}
}

func testNoSuchProgram(t *testing.T, h *lab.Host) {
	for _, c := range []lab.Command{
		{Argv: []string{"no-such-program"}},
		{Argv: []string{"/no/such"}},
		{Argv: []string{"true"}, Dir: "/no/such"},
		{Argv: []string{"/etc"}},
	} {
		if status, err := h.Run(t.Context(), c); err == nil {
			t.Errorf("%+v: status %d", c, status)
		}
	}
	if _, err := h.Run(t.Context(),
		lab.Command{Argv: []string{"cat"}, Stdin: strings.Repeat("x", 1<<20+1)}); err == nil ||
		!strings.Contains(err.Error(), "longer than") {
		t.Errorf("got %v", err)
	}
}

func testSameTime(t *testing.T, h *lab.Host) {
	errs := make(chan error)
	for range 5 {
		go func() {
			var out bytes.Buffer
			_, err := h.Run(t.Context(), lab.Command{Argv: []string{"seq", "1", "5000"}, Stdout: &out})
			if err == nil && strings.Count(out.String(), "\n") != 5000 {
				err = errors.New("output is mixed up")
			}
			errs <- err
		}()
	}
	for range 5 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestLiveContextEndsTheHost(t *testing.T) {
	lab.Require(t)
	ctx, cancel := context.WithCancel(t.Context())
	h, err := lab.Start(ctx, lab.Config{Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Stop()
	time.AfterFunc(200*time.Millisecond, cancel)
	if status, err := h.Run(context.Background(), lab.Command{Argv: []string{"sleep", "1000"}}); err == nil {
		t.Errorf("status %d of a host that has gone", status)
	}
	select {
	case <-h.Done():
	case <-time.After(10 * time.Second):
		t.Error("QEMU lives on")
	}
}

func TestLiveCacheThatIsNotSeenInside(t *testing.T) {
	lab.Require(t)
	k, err := lab.FindKernel()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "vmnet-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Symlink(filepath.Dir(filepath.Dir(k.Image)), dir+"/full-kernel"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VMNET_CACHE", dir)
	h, err := lab.Start(t.Context(), lab.Config{Logf: t.Logf})
	if err == nil {
		h.Stop()
		t.Fatal("it started")
	}
	if !strings.Contains(err.Error(), "a lab host does not see the machine's /dev") {
		t.Errorf("got %v", err)
	}
}

func TestKernelThatIsMissing(t *testing.T) {
	t.Setenv("VMNET_CACHE", t.TempDir())
	if _, err := lab.FindKernel(); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), "setup.sh --kernel full") {
		t.Errorf("got %v", err)
	}
}
