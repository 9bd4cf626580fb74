package roster

import (
	"fmt"
	"slices"

	"vmnet/internal/network/config"
)

// Leave returns what a person should know when a guest's NIC leaves a network while it runs: which
// forwards reach nobody from then on, and that the guest does not know.
func Leave(f Files, network string, g Guest) []string {
	n, err := f.dir().Read(network)
	if err != nil {
		return []string{err.Error()}
	}
	var notices []string
	for _, forward := range n.Forwards {
		if leadsTo(n, forward, g) {
			from := forward.From()
			if forward.Listen.IsValid() {
				from += " --listen " + forward.Listen.String()
			}
			notices = append(notices, fmt.Sprintf(
				"network %s: forward %s reaches nobody while %s is not there (vmnet forward remove %[1]s %s)",
				network, forward.From(), g.Title(), from))
		}
	}
	if n.DHCP {
		notices = append(notices, fmt.Sprintf("the guest keeps the address that network %s has leased to it "+
			"until it asks for another (renew the lease in the guest)", network))
	}
	return notices
}

// leadsTo reports whether a forward leads to the guest's NIC.
func leadsTo(n *config.Network, f config.Forward, g Guest) bool {
	if f.Bound.MAC != "" {
		return f.Bound.MAC == g.MAC.String()
	}
	to, err := n.Target(f)
	if host, ok := hostOf(n.Fixed(), g.MAC); ok && host.IP == to {
		return true
	}
	return err == nil && slices.Contains(g.IP, to)
}
