package inventory

import (
	"net"
	"os"
	"testing"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/tapmgr/nic"
)

// TestLabelsThatHaveEnded: a NIC that is attached again has a label with the same text as before.
func TestLabelsThatHaveEnded(t *testing.T) {
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	inode, err := own.Inode()
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{NS: own}
	r := nic.Record{
		VM: "P2", NIC: "net0", Type: nic.TypeTap, Source: "br0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Model: nic.DefaultModel, Queues: 1,
	}
	former, err := procfd.NewLabel(r.Label(inode))
	if err != nil {
		t.Fatal(err)
	}
	defer former.Close()
	count := func() int {
		op, err := h.openedBy(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		return len(op.Labels)
	}
	if n := count(); n != 1 {
		t.Fatalf("%d labels, want 1", n)
	}
	if err := h.EndLabels(os.Getpid(), r.VM, "net1", ""); err != nil || count() != 1 {
		t.Errorf("those of another NIC: %v, %d labels", err, count())
	}
	if err := h.EndLabels(os.Getpid(), r.VM, r.NIC, ""); err != nil || count() != 0 {
		t.Errorf("%v, %d labels are left", err, count())
	}
	again, err := procfd.NewLabel(r.Label(inode))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if n := count(); n != 1 {
		t.Errorf("%d labels of the NIC that is there again, want 1", n)
	}
}
