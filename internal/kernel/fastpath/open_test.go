package fastpath

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExplain: what an old kernel or a process without privilege gets says what is needed.
func TestExplain(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.ENOSYS: "needs Linux 6.6", unix.ENOPROTOOPT: "needs Linux 6.6", unix.EPERM: "needs CAP_BPF",
		unix.ENOMEM: "load a BPF program",
	} {
		if err := explain(fmt.Errorf("x: %w", errno)); !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}
