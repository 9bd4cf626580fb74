package domainxml

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// definitionXML has NICs of several types in the form that libvirt 9.0 writes.
const definitionXML = `<?xml version="1.0"?>
<!-- written by libvirt -->
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; mail</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <vcpu placement='static' current='2'>4</vcpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/>
      <source bridge='br0' network='' portid='x'/>
      <target dev='vnet0'/>
      <port isolated='yes'/>
      <model type='virtio'/>
      <driver name='vhost' queues='4'/>
      <mtu size='9000'/>
      <alias name='net0'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x1f' function='0x7'/>
    </interface>
    <interface type='direct'>
      <mac address='52:54:00:00:00:02'/>
      <source dev='eth0' mode='bridge'/>
      <target dev='macvtap0'/>
      <model type='e1000e'/>
      <address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0001'/>
    </interface>
    <interface type='ethernet'>
      <target dev='tap0' managed='no'/>
      <link state='down'/>
      <alias name='ua-vmnet-net1'/>
    </interface>
    <interface type='user'/>
    <hostdev><interface type='not one'/></hostdev>
  </devices>
  <seclabel type='dynamic' model='apparmor'><label>libvirt-c7a5fdbd</label></seclabel>
  <seclabel type='dynamic' model='dac' relabel='yes'>
    <label>+64055:+108</label>
  </seclabel>
</domain>
`

const domainAround = `<domain><name>x</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><devices>NIC</devices></domain>`

func TestParse(t *testing.T) {
	def, err := Parse(definitionXML)
	if err != nil {
		t.Fatal(err)
	}
	uuid, _ := ParseUUID("C7A5FDBD-edaf-9455-926a-d65c16db1809")
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, last} }
	want := &Definition{
		Type: "kvm", Name: "web & mail", UUID: uuid, ID: 3, CPUs: 2, RunAs: 64055,
		Interfaces: []Interface{
			{
				Type: "bridge", MAC: mac(1), Source: Source{Bridge: "br0"}, Target: "vnet0",
				Isolated: true, Model: "virtio",
				Driver: "vhost", Queues: 4, MTU: 9000, Alias: "net0", Address: "0000:01:1f.7",
			},
			{
				Type: "direct", MAC: mac(2), Source: Source{Device: "eth0", Mode: "bridge"}, Target: "macvtap0",
				Model: "e1000e",
			},
			{Type: "ethernet", Target: "tap0", Unmanaged: true, LinkDown: true, Alias: "ua-vmnet-net1"},
			{Type: "user"},
		},
	}
	if diff := cmp.Diff(want, def, cmpopts.IgnoreUnexported(Definition{})); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	nic := func(s string) string { return strings.Replace(domainAround, "NIC", "<interface>"+s+"</interface>", 1) }
	for name, text := range map[string]string{
		"nothing": "",
		"text":    "domain",
		"another": "<network/>",
		"no UUID": "<domain/>",
		"cut":     definitionXML[:300],
		"two":     definitionXML + "<domain/>",
		"entity": `<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>` + strings.Replace(domainAround, "NIC",
			"&b;", 1),
		"MAC":         nic("<mac address='52:54'/>"),
		"queues":      nic("<driver queues='-1'/>"),
		"many queues": nic("<driver queues='65536'/>"),
		"slot":        nic("<address type='pci' slot='0x20'/>"),
		"function":    nic("<address type='pci' function='x'/>"),
		"long":        definitionXML + strings.Repeat(" ", maxText),
		"many":        strings.Replace(domainAround, "NIC", strings.Repeat("<interface/>", maxInterfaces+1), 1),
	} {
		if def, err := Parse(text); err == nil {
			t.Errorf("%s: %+v", name, def)
		}
	}
}

// TestDeepNest: elements that are skipped may nest to any depth, elements that are read may not.
func TestDeepNest(t *testing.T) {
	deep := func(name string) string {
		nest := strings.Repeat("<"+name+">", 100_000) + strings.Repeat("</"+name+">", 100_000)
		return strings.Replace(domainAround, "NIC", nest, 1)
	}
	for _, name := range []string{"x", "interface"} {
		if def, err := Parse(deep(name)); err == nil && len(def.Interfaces) > 1 {
			t.Errorf("%+v", def)
		}
	}
}

func TestEthernetXML(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for want, nic := range map[string]Ethernet{
		`<interface type="ethernet"><mac address="02:00:00:00:00:01"></mac><target dev="tap0" managed="no"></target>` +
			`<model type="virtio"></model><alias name="ua-vmnet-net0"></alias></interface>`: {
			Tap: "tap0",
			MAC: mac, Queues: 1, Alias: "ua-vmnet-net0",
		},
		`<interface type="ethernet"><mac address="02:00:00:00:00:01"></mac><target dev="a&amp;b" managed="no"></target>` +
			`<model type="e1000e"></model><driver queues="4"></driver><mtu size="9000"></mtu>` +
			`<alias name="ua-1"></alias></interface>`: {
			Tap: "a&b", MAC: mac, Model: "e1000e", Queues: 4, MTU: 9000, Alias: "ua-1",
		},
		`<interface type="ethernet"><mac address="02:00:00:00:00:01"></mac><target dev="tap0" managed="no"></target><link state="down"></link>` +
			`<model type="virtio"></model><driver name="qemu"></driver><alias name="ua-1"></alias></interface>`: {
			Tap: "tap0", MAC: mac, LinkDown: true, Driver: "qemu", Alias: "ua-1",
		},
		`<interface type="direct"><mac address="02:00:00:00:00:01"></mac><source dev="eth0" mode="vepa"></source><target dev="tap0"></target>` +
			`<model type="virtio"></model><alias name="ua-1"></alias></interface>`: {
			Tap: "tap0", Managed: true, Parent: "eth0", Mode: "vepa", MAC: mac, Alias: "ua-1",
		},
	} {
		if got, err := nic.XML(); err != nil || got != want {
			t.Errorf("%+v: %v\n%s\nwant\n%s", nic, err, got, want)
		}
	}
	good := Ethernet{Tap: "tap0", MAC: mac, Alias: "ua-x"}
	for name, spoil := range map[string]func(*Ethernet){
		"no tap":        func(e *Ethernet) { e.Tap = "" },
		"parent":        func(e *Ethernet) { e.Managed, e.Parent, e.Mode = true, "a/b", "vepa" },
		"by name":       func(e *Ethernet) { e.Parent, e.Mode = "eth0", "vepa" },
		"mode":          func(e *Ethernet) { e.Managed, e.Parent, e.Mode = true, "eth0", "passthru" },
		"long tap":      func(e *Ethernet) { e.Tap = "sixteen-letters-" },
		"pattern":       func(e *Ethernet) { e.Tap = "tap%d" },
		"path":          func(e *Ethernet) { e.Tap = "a/b" },
		"libvirt's tap": func(e *Ethernet) { e.Tap = "vnet7" },
		"driver":        func(e *Ethernet) { e.Driver = "xen" },
		"space":         func(e *Ethernet) { e.Tap = "a b" },
		"no MAC":        func(e *Ethernet) { e.MAC = nil },
		"zero MAC":      func(e *Ethernet) { e.MAC = make([]byte, 6) },
		"multicast MAC": func(e *Ethernet) { e.MAC = []byte{1, 0, 0, 0, 0, 1} },
		"queues":        func(e *Ethernet) { e.Queues = 257 },
		"MTU":           func(e *Ethernet) { e.MTU = 67 },
		"alias":         func(e *Ethernet) { e.Alias = "net0" },
		"bare alias":    func(e *Ethernet) { e.Alias = UserAlias },
		"dotted alias":  func(e *Ethernet) { e.Alias = "ua-net.0" },
		"model":         func(e *Ethernet) { e.Model = "a b" },
	} {
		nic := good
		spoil(&nic)
		if got, err := nic.XML(); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestAlias(t *testing.T) {
	if got := Alias("net0"); got != "ua-vmnet-net0" {
		t.Error(got)
	}
	for alias, want := range map[string]string{
		"ua-vmnet-net0": "net0", "ua-vmnet-a b": "a b", "ua-vmnet-": "",
		"ua-net0": "", "vmnet-net0": "", "": "",
	} {
		if got := AliasNIC(alias); got != want {
			t.Errorf("%q: %q", alias, got)
		}
	}
}

func TestParseUUID(t *testing.T) {
	const text = "00112233-4455-6677-8899-aabbccddeeff"
	if u, err := ParseUUID(text); err != nil || u.String() != text || u[15] != 0xff {
		t.Errorf("%s, %v", u, err)
	}
	for _, bad := range []string{
		"", "00112233445566778899aabbccddeeff", "0011223-34455-6677-8899-aabbccddeeff",
		text + "0", "g" + text[1:], "00112233+4455-6677-8899-aabbccddeeff",
	} {
		if _, err := ParseUUID(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestInterfaceText: the text of an interface is what the definition has, whatever is in it. What
// only looks like one does not count.
func TestInterfaceText(t *testing.T) {
	const own = `<interface type='ethernet' trustGuestRxFilters="yes"><!-- x --><alias name='ua-a&amp;b'/>` +
		`<teaming type='transient'><alias name='inner'/></teaming></interface>`
	const more = `<hostdev><interface><alias name='deep'/></interface></hostdev><disk><alias name='disk'/></disk>`
	text := strings.Replace(domainAround, "NIC", " "+more+"\n"+own+"<interface><alias name='other'/></interface>", 1)
	def, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for alias, want := range map[string]string{
		"ua-a&b": own, "other": "<interface><alias name='other'/></interface>",
		"deep": "", "disk": "", "inner": "", "": "",
	} {
		if got := def.InterfaceText(alias); got != want {
			t.Errorf("%s: %q, want %q", alias, got, want)
		}
	}
}
