package sdnotify

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) {
	if os.Getenv("VMNET_TEST_STORED") == "" {
		leaktest.Main(m)
	}
	for name, f := range Stored() { // as the process that a manager starts
		text, err := io.ReadAll(f)
		fmt.Printf("%s: %s %v\n", name, text, errors.Join(err, f.Close()))
	}
	os.Exit(0)
}

// TestStored starts a process as a manager does. Of two files with one name, it has the newer one,
// which comes first.
func TestStored(t *testing.T) {
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), "VMNET_TEST_STORED=yes", "LISTEN_FDS=2", "LISTEN_FDNAMES=a:a")
	for _, text := range []string{"newer", "older"} {
		r, w, err := os.Pipe()
		if err == nil {
			_, err = w.WriteString(text)
		}
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "a: newer <nil>" {
		t.Errorf("%v, %s", err, out)
	}
}

func TestStoreRoom(t *testing.T) {
	for text, want := range map[string]int{"": 0, "4096": 4096, "-1": 0, "x": 0} {
		t.Setenv(roomEnv, text)
		if got := StoreRoom(); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
}
