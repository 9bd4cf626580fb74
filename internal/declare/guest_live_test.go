package declare

import (
	"testing"
	"time"

	"vmnet/internal/guestfile"
	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// TestLiveGuest: a guest gets what its file declares while it boots, and releases what it no longer
// declares.
func TestLiveGuest(t *testing.T) {
	nstest.RequireRoot(t)
	l := newLab(t)
	d := &declared{guests: []*guestfile.Guest{guestOf(t, "P2", "{net0: {bridge: br0}, net1: {bridge: br1}}")}}
	watch(t, &Watcher{Applier: l.ap}, d)
	testvm.StartT(t, testvm.Config{Name: "P2"}) // which waits until it has booted
	d.until(t, "P2 attach net0 attach net1", 1)
	if all, err := l.m.Show(t.Context(), "P2"); err != nil || len(all) != 2 || !all[1].Guest.Plugged {
		t.Errorf("%+v, %v", all, err)
	}
	d.change([]*guestfile.Guest{guestOf(t, "P2", "{net0: {bridge: br1}}")}, nil)
	d.until(t, "P2 detach net1 set net0", 1)
	nstest.Eventually(t, 30*time.Second, "one NIC is left", func() bool {
		all, err := l.m.List(t.Context(), "P2")
		return err == nil && len(all) == 1 && all[0].Source == "br1"
	})
}
