package tapmgr

import "cmp"

// libvirtModel is libvirt's name for a model of QEMU's.
func libvirtModel(model string) string { return cmp.Or(libvirtModels[model], model) }

// ModelOf is QEMU's name for a model of a NIC that libvirt calls so.
func ModelOf(libvirtModel string) string {
	for qemu, libvirt := range libvirtModels {
		if libvirt == libvirtModel {
			return qemu
		}
	}
	return libvirtModel
}
