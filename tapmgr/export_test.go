package tapmgr

import "vmnet/internal/inventory"

// Foreign lists the links that process pid holds and that others have made.
func (m *Manager) Foreign(pid int) ([]inventory.ForeignLink, error) { return m.host.Foreign(pid) }
