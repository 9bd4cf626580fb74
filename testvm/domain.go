package testvm

import (
	"encoding/xml"
	"fmt"
	"strings"

	"vmnet/testvm/agent"
)

// Domain is a guest that libvirt starts.
type Domain struct {
	Name           string
	Machine        string // "pc", or "q35", which has spare root ports; empty means q35
	CPUs           int    // 0 means 1
	Agent, Console string // paths of the agent's socket and of the log of the serial port
	Interfaces     string // <interface> elements
	Metadata       string // the content of <metadata>
	Extra          string // further elements of <domain>
	Attributes     string // further attributes of <domain>
}

// rootPorts is the number of root ports: some for the machine's own devices, the others spare.
const rootPorts = 8

// XML describes the domain to libvirt (formatdomain). Unlike QEMU, libvirt disables ACPI unless the
// XML enables it: hot plug needs it.
func (d Domain) XML(p Parts) string {
	ports, machine := "", "pc"
	if d.Machine != "pc" {
		machine = "q35"
		ports = "<controller type='pci' index='0' model='pcie-root'/>"
		for i := range rootPorts {
			ports += fmt.Sprintf("\n    <controller type='pci' index='%d' model='pcie-root-port'/>", i+1)
		}
	}
	return fmt.Sprintf(`<domain type='qemu' %s>
  <name>%s</name>
  <memory unit='MiB'>128</memory>
  <vcpu>%d</vcpu>
  <metadata>%s</metadata>
  <os>
    <type arch='x86_64' machine='%s'>hvm</type>
    <kernel>%s</kernel>
    <initrd>%s</initrd>
    <cmdline>%s</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    %s
    <serial type='file'><source path='%s'/></serial>
    <channel type='unix'><source mode='bind' path='%s'/><target type='virtio' name='%s'/></channel>
    %s
  </devices>
  %s
</domain>
`, d.Attributes, escapeXML(d.Name), max(d.CPUs, 1), d.Metadata, machine, escapeXML(p.Kernel), escapeXML(p.Initramfs), escapeXML(p.Args),
		ports, escapeXML(d.Console), escapeXML(d.Agent), agent.PortName, d.Interfaces, d.Extra)
}

func escapeXML(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes all
	return b.String()
}
