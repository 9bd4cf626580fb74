package doctor

import "vmnet/internal/stablemac"

// machineID checks whether the addresses that vmnet chooses survive a boot.
func (m Machine) machineID() []Check {
	const name = "machine id"
	if err := stablemac.Check(m.at("/")); err != nil {
		return warn(name, "systemd-machine-id-setup, before guests are attached; or name addresses with --mac", "%v",
			err)
	}
	return ok(name, "it exists: the addresses that vmnet chooses for bridges and NICs survive a boot")
}
