package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

// programEnv makes the test binary behave as the program.
const programEnv = "VMNET_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" || os.Getenv(roleEnv) != "" {
		main()
	}
	leaktest.Main(m)
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	return cmd
}

// TestCommandIsPoor: the command has ignored signals, inherited files and room for few more; the
// program exits with the command's status.
func TestCommandIsPoor(t *testing.T) {
	const script = `grep SigIgn: /proc/self/status; ls /proc/$$/fd | wc -l; ulimit -Sn; echo "$VMNET_TEST_BESIDE"; exit 7`
	out, err := program(t, "-files", "5", "sh", "-c", script).Output()
	var status *exec.ExitError
	if !errors.As(err, &status) || status.ExitCode() != 7 {
		t.Errorf("status: %v", err)
	}
	lines := strings.Split(string(out), "\n")
	if len(lines) != 5 || !strings.HasSuffix(lines[0], "3") || len(lines[1]) != 3 ||
		lines[1] < "200" || lines[2] != "256" ||
		!strings.HasSuffix(lines[3], " -beside -files 5") {
		t.Errorf("it sees %q", lines)
	}
}

// TestRunThatIsKilled kills a run, and starts two after it.
func TestRunThatIsKilled(t *testing.T) {
	dir := t.TempDir()
	script := fmt.Sprintf(`cd %s; if mkdir first; then sleep 60 & wait; fi; mktemp again.XXXX`, dir)
	out, err := program(t, "-killed", "200ms", "-copies", "2", "sh", "-c", script).CombinedOutput()
	again, _ := filepath.Glob(dir + "/again.*")
	if err != nil || len(again) != 2 {
		t.Errorf("%v: %s: %q", err, out, again)
	}
}

// TestLiveHaunt: the hostile user's processes run in the tests' namespaces, and are gone
// afterwards. The namespaces have their own /tmp: such processes may already run beside this test.
func TestLiveHaunt(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	before := hostilePIDs(t)
	cmd := program(t)
	cmd.Path, cmd.Args = "/bin/sh",
		[]string{"sh", "-c", "mount -t tmpfs -o mode=1777 none /tmp && exec /proc/$PPID/exe -beside -files 15000"}
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	files := 0
	pids := slices.DeleteFunc(hostilePIDs(t), func(dir string) bool { return slices.Contains(before, dir) })
	for _, dir := range pids {
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			t.Error(err)
		}
		files += len(fds)
	}
	if len(pids) < len(parts(15000)) || files < 15000 {
		t.Errorf("%d processes with %d files", len(pids), files)
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Error(err)
	}
	nstest.Eventually(t, 20*time.Second, "they are gone", func() bool { return len(hostilePIDs(t)) == len(before) })
}

// hostilePIDs returns the directories of the hostile user's processes in /proc.
func hostilePIDs(t *testing.T) (found []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		status, err := os.ReadFile(dir + "/status")
		if err == nil && strings.Contains(string(status), fmt.Sprintf("\nUid:\t%d\t", uid)) {
			found = append(found, dir)
		}
	}
	return found
}
