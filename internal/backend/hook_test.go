package backend

import (
	"math"
	"testing"

	"vmnet/internal/kernel/rtnl"
)

// TestNotOpened: the error for a link without a node in /dev names no node.
func TestNotOpened(t *testing.T) {
	const want = "libvirt has not opened web-0 (start the guest again)"
	if err := notOpened(&rtnl.Link{Name: "web-0", Index: math.MaxInt32}); err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}
