package domainxml

import (
	"strings"
	"testing"
)

// FuzzDefinition reads XML. A valid definition is bounded, and its NICs can be written as XML
// again.
func FuzzDefinition(f *testing.F) {
	f.Add(definitionXML)
	f.Add(`<domain><name>x</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid></domain>`)
	f.Add(`<!DOCTYPE x [<!ENTITY a "b">]><domain><name>&a;</name></domain>`)
	f.Fuzz(func(t *testing.T, text string) {
		def, err := Parse(text)
		if (def == nil) != (err != nil) {
			t.Fatalf("%+v, %v", def, err)
		}
		if def == nil {
			return
		}
		for _, nic := range def.Interfaces {
			if nic.Queues < 0 || nic.MTU < 0 || nic.Address != "" && len(nic.Address) != len("0000:00:00.0") {
				t.Errorf("%+v", nic)
			}
			if text := def.InterfaceText(nic.Alias); nic.Alias != "" && !strings.Contains(text, "alias") {
				t.Errorf("%+v has the text %q", nic, text)
			}
			x, err := Ethernet{
				Tap: nic.Target, MAC: nic.MAC, LinkDown: nic.LinkDown, Model: nic.Model,
				Driver: nic.Driver, Queues: nic.Queues, MTU: nic.MTU, Alias: nic.Alias,
			}.XML()
			if err != nil {
				continue
			}
			again, err := Parse(strings.Replace(domainAround, "NIC", x, 1))
			if err != nil || len(again.Interfaces) != 1 || again.Interfaces[0].Target != nic.Target ||
				again.Interfaces[0].Alias != nic.Alias {
				t.Errorf("%+v became %s: %+v, %v", nic, x, again, err)
			}
		}
	})
}

// FuzzEthernet writes elements, reads them back and compares.
func FuzzEthernet(f *testing.F) {
	f.Add("tap0", []byte{2, 0, 0, 0, 0, 1}, "virtio", "qemu", 4, 1500, "ua-vmnet-net0", true, false)
	f.Add("'/><x", []byte{1}, "a b", "", -1, 1<<20, "ua-\"", false, true)
	f.Fuzz(func(t *testing.T, tap string, mac []byte, model, driver string, queues, mtu int,
		alias string, down, managed bool,
	) {
		n := Ethernet{
			Tap: tap, Managed: managed, MAC: mac, LinkDown: down, Model: model, Driver: driver,
			Queues: queues, MTU: mtu, Alias: alias,
		}
		x, err := n.XML()
		if err != nil {
			return
		}
		def, err := Parse(strings.Replace(domainAround, "NIC", x, 1))
		if err != nil || len(def.Interfaces) != 1 {
			t.Fatalf("%s: %+v, %v", x, def, err)
		}
		got := def.Interfaces[0]
		if got.Target != tap || got.MAC.String() != n.MAC.String() || model != "" && got.Model != model ||
			got.MTU != mtu ||
			got.Alias != alias || queues > 1 && got.Queues != queues || got.Driver != driver || got.LinkDown != down ||
			got.Unmanaged == managed {
			t.Errorf("%+v became %s, which is %+v", n, x, got)
		}
	})
}
