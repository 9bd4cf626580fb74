package tapmgr

import (
	"vmnet/internal/backend"
)

// Host is what makes and reads the host's half of NICs.
func (m *Manager) Host() *backend.Maker { return m.host }
