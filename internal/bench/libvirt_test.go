package bench

import (
	"time"

	"vmnet/libvirt/libvirttest"
)

// libvirtDomain is like the other guests; acpi is what hot plug needs.
const libvirtDomain = `<domain type='qemu'>
  <name>bench</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
`

// virsh starts libvirtd with a standing guest.
func (l *lab) virsh() func(int) (time.Duration, error) {
	daemon := libvirttest.Start(l, l.ns)
	daemon.Create(libvirtDomain)
	return func(int) (time.Duration, error) {
		return timed("virsh", "-q", "-c", daemon.URI(), "attach-interface", "bench", "bridge", "br0", "--model", "virtio", "--live")
	}
}
