package bench

import (
	"fmt"
	"time"

	"vmnet/libvirt/libvirttest"
)

// libvirtDomain is like the other guests; hot plug needs acpi.
const libvirtDomain = `<domain type='qemu'>
  <name>%s</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
`

// libvirt starts libvirtd with a paused guest for each way to attach NICs.
func (l *lab) libvirt() []*Way {
	daemon := libvirttest.Start(l, l.ns)
	for _, name := range []string{"theirs", "ours", "monitored"} {
		daemon.Create(fmt.Sprintf(libvirtDomain, name))
	}
	attach := func(guest, via string) func(int) (time.Duration, error) {
		return func(i int) (time.Duration, error) {
			return timed(l.program, "attach", "--libvirt", daemon.URI(), "--vm", guest, "--bridge", "br0", "--via",
				via, "--nic", fmt.Sprintf("net%d", i))
		}
	}
	return []*Way{
		{Name: "virsh attach-interface", Do: func(int) (time.Duration, error) {
			return timed("virsh", "-q", "-c", daemon.URI(), "attach-interface", "theirs", "bridge", "br0",
				"--model", "virtio", "--live")
		}},
		{Name: "vmnet attach --via libvirt", Do: attach("ours", "libvirt")},
		{Name: "vmnet attach --via monitor", Do: attach("monitored", "monitor")},
	}
}
