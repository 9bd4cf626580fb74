package fdroom

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestCheck(t *testing.T) {
	if err := Check(); err != nil {
		t.Error(err)
	}
}

// TestProgramsWithoutRoom: with a limit of few files, each program reports that in one line.
func TestProgramsWithoutRoom(t *testing.T) {
	dir := t.TempDir()
	programs := []string{"vmnet", "qemu-netup", "qemu-netup-full", "vmnet-hook", "testvm"}
	build := exec.Command("go", "build", "-trimpath", "-o", dir)
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as they are installed
	for _, p := range programs {
		build.Args = append(build.Args, "vmnet/cmd/"+p)
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	commands := [][]string{{"qemu-netup", "--br=br0", "--fd=0"}} // the bridge helper
	for _, p := range programs {
		commands = append(commands, []string{p, "list"})
	}
	for _, p := range commands {
		for _, n := range []int{3, 5, 6, 8, 12} {
			out, err := exec.Command("/bin/sh", append([]string{
				"-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, n), filepath.Join(dir, p[0]),
			}, p[1:]...)...).CombinedOutput()
			text := string(out)
			if err == nil || strings.Count(text, "\n") != 1 ||
				!strings.Contains(text, fmt.Sprintf("the limit is %d (raise it: ulimit -n 1024", n)) {
				t.Errorf("%s with %d files: %v, %q", p, n, err, text)
			}
		}
	}
}
