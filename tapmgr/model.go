package tapmgr

// ModelOf is QEMU's name for a model of a NIC that libvirt calls so.
func ModelOf(libvirtModel string) string {
	for qemu, libvirt := range libvirtModels {
		if libvirt == libvirtModel {
			return qemu
		}
	}
	return libvirtModel
}
