package libvirttest

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/testvm"
	"vmnet/testvm/agent"
)

// Guest is a domain with a tiny guest (package testvm) in it.
type Guest struct {
	*agent.Guest // nil before Boot
	Name         string

	daemon *Daemon
	agent  string // its socket
	log    string // of its console
}

// Domain says what a guest's domain has besides what every one has.
type Domain struct {
	Name       string
	Machine    string // "pc" or "q35"; empty means q35, which has spare root ports
	CPUs       int    // 0 means 1
	Interfaces string // <interface> elements
	Metadata   string // what <metadata> holds
	Root       string // attributes of <domain> besides the type: namespaces
	Extra      string // further elements of <domain>
}

// NewGuest defines a domain that boots a tiny guest. It is not started.
func (d *Daemon) NewGuest(tb testing.TB, dom Domain) *Guest {
	tb.Helper()
	testvm.Require(tb)
	dir, err := os.MkdirTemp("", "libvirtguest")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	parts, err := testvm.MakeParts(tb.Context(), testvm.Config{Name: dom.Name}, dir)
	if err != nil {
		tb.Fatal(err)
	}
	g := &Guest{Name: dom.Name, daemon: d, agent: filepath.Join(dir, "agent"), log: filepath.Join(dir, "console")}
	d.Define(g.xml(dom, parts))
	return g
}

func (g *Guest) xml(dom Domain, parts testvm.Parts) string {
	ports, machine, root := "", "pc", dom.Root
	if dom.Machine != "pc" {
		machine = "q35"
		ports = "<controller type='pci' index='0' model='pcie-root'/>"
		for i := range rootPorts {
			ports += fmt.Sprintf("<controller type='pci' index='%d' model='pcie-root-port'/>", i+1)
		}
	}
	return fmt.Sprintf(`<domain type='qemu' %s>
  <name>%s</name><memory unit='MiB'>128</memory><vcpu>%d</vcpu>
  <metadata>%s</metadata>
  <os><type arch='x86_64' machine='%s'>hvm</type><kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline></os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <controller type='usb' model='none'/><memballoon model='none'/>%s
    <serial type='file'><source path='%s'/></serial>
    <channel type='unix'><source mode='bind' path='%s'/><target type='virtio' name='%s'/></channel>
    %s
  </devices>
  %s
</domain>`, root, escape(dom.Name), max(dom.CPUs, 1), dom.Metadata, machine, escape(parts.Kernel), escape(parts.Initramfs), escape(parts.Args),
		ports, escape(g.log), escape(g.agent), agent.PortName, dom.Interfaces, dom.Extra)
}

// rootPorts are some that the machine's own devices take, and spare ones.
const rootPorts = 8

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text))
	return b.String()
}

// Start starts the domain, and does not wait for its guest.
func (g *Guest) Start() {
	g.daemon.tb.Helper()
	g.daemon.Virsh("start", g.Name)
}

// Boot starts the domain and waits for its guest.
func (g *Guest) Boot() {
	g.daemon.tb.Helper()
	g.Start()
	g.Await()
}

// bootTime is how long a guest may take; it needs 3 s on an idle machine.
const bootTime = 2 * time.Minute

// Await waits until the guest of a started domain answers.
func (g *Guest) Await() {
	tb := g.daemon.tb
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bootTime)
	defer cancel()
	var err error
	if g.Guest, err = agent.Dial(ctx, g.Name, g.agent); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = g.Close() })
	if _, err := g.WaitReady(ctx); err != nil {
		console, _ := os.ReadFile(g.log)
		tb.Fatalf("%v; its console:\n%s", err, console)
	}
}

// QEMU is the guest's process.
func (g *Guest) QEMU() int {
	g.daemon.tb.Helper()
	return g.daemon.QEMU(g.Name)
}
