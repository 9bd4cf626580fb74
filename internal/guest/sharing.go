package guest

import (
	"context"
	"strings"

	"vmnet/internal/backend"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// planSharing decides how a guest shares its memory with a switch (nic.TypeVhostUser), and returns
// an error if it cannot, or if that switch must not have its memory.
func (m *Monitor) planSharing(ctx context.Context, n *backend.NIC) error {
	if err := m.conn.CheckShared(ctx); err != nil {
		return err
	}
	hasKVM, err := m.conn.HasKVM(ctx)
	if err != nil {
		return err
	}
	return n.ShareWith(m.found.process.PID, m.found.process.UID, hasKVM)
}

// listen has the host's steps begin with those by which QEMU listens, to which they then connect,
// and keeps QEMU from waiting for a switch that has gone.
func (m *Monitor) listen(n *backend.NIC, plug []step.Step) {
	n.Listen = step.InStage(nic.ErrHandover, m.conn.ListenSteps(n.Device, &n.Files)...)
	for i := range plug {
		if !strings.HasPrefix(plug[i].Name, "netdev_add") {
			continue
		}
		undo := plug[i].Undo
		plug[i].Undo = func(ctx context.Context) error {
			end := n.StandIn(ctx)
			defer end()
			return undo(ctx)
		}
	}
}
