package qmp

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestVhostUserUndo: QEMU has handled the end of the connection to a backend before netdev_del.
func TestVhostUserUndo(t *testing.T) {
	t.Parallel()
	var g guestless
	c, ctx := fakeConn(t, g.serve), within(t, 20*time.Second)
	s := c.netdevStep(NIC{ID: "n", Backend: VhostUser, Queues: 1, Socket: "/run/s"})
	if err := errors.Join(s.Do(ctx), s.Undo(ctx), c.RollbackListening(ctx, "n")); err != nil {
		t.Error(err)
	}
	want := []string{
		"netdev_add n-netdev", "query-name", "netdev_del n-netdev",
		"query-name", "netdev_del n-netdev", "closefd n-label", "closefd n-netns", "chardev-remove n-chardev",
	}
	if diff := cmp.Diff(want, g.commands()); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}
