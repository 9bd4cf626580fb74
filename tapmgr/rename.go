package tapmgr

import (
	"context"
	"errors"
	"io/fs"

	"vmnet/tapmgr/nic"
)

// renamed is the present name of the bridge or parent device that a Spec names as it was called
// when the guest got the NIC, where the error of a plan Is fs.ErrNotExist for that reason; else it
// is empty.
func (m *Manager) renamed(ctx context.Context, spec nic.Spec, why error) string {
	if !errors.Is(why, fs.ErrNotExist) {
		return ""
	}
	all, err := m.host.Named(ctx, spec.VM, spec.NIC)
	if err != nil {
		return ""
	}
	for _, dev := range all {
		if dev.FormerSource != "" && dev.FormerSource == spec.Source() && (spec.PID == 0 || dev.IsHeldBy(spec.PID)) {
			return dev.Want.Source
		}
	}
	return ""
}
