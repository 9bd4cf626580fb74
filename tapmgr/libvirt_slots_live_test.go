package tapmgr_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vmnet/tapmgr/nic"
)

// TestLiveLibvirtWithoutSlots: a domain that has no PCI Express port for another device gets no
// NIC. The error has the cure, and nothing is left of the attempt.
func TestLiveLibvirtWithoutSlots(t *testing.T) {
	h := newLibvirtHost(t)
	name := h.name("P2")
	h.virt.Define(fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
<devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`, name))
	h.virt.Virsh("start", name, "--paused")
	spec := nic.Spec{Target: nic.Target{VM: name}, NIC: "net0", Bridge: "br0", Vhost: nic.VhostOff}
	_, err := h.Attach(h.context(20*time.Second), spec)
	if err == nil ||
		!strings.Contains(err.Error(),
			"the guest has no free PCI port: give it some while it is off, "+
				"<controller type='pci' model='pcie-root-port'/>") {
		t.Errorf("attach: %v", err)
	}
	device, _ := nic.InterfaceName(name, "net0")
	h.gone(device)
	if out := h.virt.Virsh("dumpxml", name); strings.Contains(out, "ua-vmnet") || strings.Contains(out, `id="net0"`) {
		t.Errorf("left:\n%s", out)
	}
	h.virt.Virsh("destroy", name)
}
