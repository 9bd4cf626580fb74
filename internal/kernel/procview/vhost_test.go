package procview

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestVhostTimes: the threads are the VMM's own, or threads of the kernel; a process that only
// calls itself so does not count.
func TestVhostTimes(t *testing.T) {
	proc := t.TempDir()
	stat := func(path, name string, parent, user, system int) {
		path = filepath.Join(proc, path, "stat")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("7 (%s) S %d 1 1 0 -1 0 0 0 0 0 %d %d 0 0", name, parent, user, system)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stat("100/task/100", "qemu", 1, 900, 9)
	stat("100/task/101", "vhost-100", 1, 10, 5)
	stat("100/task/102", "vhost-100", 1, 0, 5)
	stat("100/task/103", "vhost-200", 1, 7, 7)
	stat("200/task/200", "qemu) (x", 1, 900, 9)
	stat("201", "vhost-200", 2, 100, 1)
	stat("202", "vhost-200", 1, 5000, 1)
	stat("300/task/300", "short", 1, 1, 1)
	got := vhostTimes(proc, []int{100, 200, 300})
	want := map[int]time.Duration{100: 200 * time.Millisecond, 200: 1010 * time.Millisecond}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if all := VhostTimes([]int{os.Getpid()}); len(all) != 0 {
		t.Errorf("this test: %v", all)
	}
}
