package doctor

import "vmnet/internal/stablemac"

// machineID looks whether the addresses that vmnet chooses outlast a boot.
func (m Machine) machineID() []Check {
	const name = "machine id"
	if err := stablemac.Check(m.at("/")); err != nil {
		return warn(name, "systemd-machine-id-setup, before guests are attached; or name addresses with --mac", "%v", err)
	}
	return ok(name, "it is there: the addresses that vmnet chooses for bridges and NICs are the same after a boot")
}
