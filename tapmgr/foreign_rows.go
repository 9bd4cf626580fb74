package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vmnet/internal/ovs"
	"vmnet/tapmgr/nic"
)

// ForeignRows returns the ports of Open vSwitch that others than vmnet have made for devices that
// have gone, as actions that would remove them. Open vSwitch never removes such a row by itself,
// and many of them slow OVN's controllers down.
func (m *Manager) ForeignRows(ctx context.Context) ([]nic.Action, error) {
	return m.eachForeignRow(ctx, func(string, []ovs.Port) error { return nil })
}

// RemoveForeignRows removes those of the rows that are still abandoned: a device of the row's name
// may have come meanwhile.
func (m *Manager) RemoveForeignRows(ctx context.Context, rows []nic.Action) ([]nic.Action, error) {
	if len(rows) == 0 {
		return nil, nil
	}
	return m.eachForeignRow(ctx, func(path string, ports []ovs.Port) error {
		return ovs.With(ctx, path, func(c *ovs.Conn) error { return c.Remove(ctx, ports) })
	}, rows...)
}

// eachForeignRow runs do for the abandoned ports of each database, only those of only unless that
// is empty.
func (m *Manager) eachForeignRow(ctx context.Context, do func(path string, ports []ovs.Port) error,
	only ...nic.Action,
) (actions []nic.Action, err error) {
	var errs []error
	wanted := map[nic.Action]bool{}
	for _, a := range only {
		wanted[a] = true
	}
	for _, path := range m.host.Databases() {
		found, err := m.host.AbandonedOVS(ctx, path)
		found = slices.DeleteFunc(found, func(p ovs.Port) bool { return len(only) > 0 && !wanted[foreignRow(p)] })
		if err == nil && len(found) > 0 {
			err = do(path, found)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, p := range found {
			actions = append(actions, foreignRow(p))
		}
	}
	return actions, errors.Join(errs...)
}

// foreignRow describes a port, in which the words of Open vSwitch are bounded.
func foreignRow(p ovs.Port) nic.Action {
	on := "of no bridge"
	if p.Bridge != "" {
		on = "of " + p.Bridge
	}
	if p.IfaceID != "" {
		on += fmt.Sprintf(", iface-id %.64q", p.IfaceID)
	}
	return nic.Action{
		Interface: p.Name, Changed: true,
		Action: fmt.Sprintf("port %s removed from Open vSwitch: its device has gone", on),
	}
}
