package fakelibvirt

import "vmnet/libvirt"

// Arrive has the guest arrive that was incoming, and clients learn of it.
func (d *Daemon) Arrive() {
	d.mu.Lock()
	d.behaviour.Incoming = false
	d.mu.Unlock()
	const migrated = 1 // VIR_DOMAIN_EVENT_RESUMED_MIGRATED
	var e encoder
	e.numbers(uint32(libvirt.Resumed), migrated)
	d.send(libvirt.Lifecycle, e)
}

// state answers with a state and its reason (virDomainState).
func (d *Daemon) state(_ *client, _ *message, result *encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.behaviour.Off:
		result.numbers(5, 0)
	case d.behaviour.Incoming:
		result.numbers(3, 2) // paused for its migration
	default:
		result.numbers(1, 1)
	}
	return nil
}
