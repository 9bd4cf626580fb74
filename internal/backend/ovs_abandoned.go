package backend

import (
	"context"

	"vmnet/internal/ovs"
)

// AbandonedOVS returns the ports in the database with that socket that others than vmnet have made
// for devices that have gone.
func (m *Maker) AbandonedOVS(ctx context.Context, path string) (found []ovs.Port, err error) {
	ports, err := m.readPorts(ctx, path)
	if err != nil {
		return nil, err
	}
	links, err := m.NL.Links("", 0) // after the rows, so that a device of a row is among them
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, l := range links {
		names[l.Name] = true
	}
	for _, p := range ports {
		if p.IsAbandoned(func(name string) bool { return names[name] }) {
			found = append(found, p)
		}
	}
	return found, nil
}
