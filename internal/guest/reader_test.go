package guest

import (
	"net"
	"testing"

	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// TestRecordOf: a NIC on a bridge of Open vSwitch keeps in its declaration what its record says.
func TestRecordOf(t *testing.T) {
	def, err := domainxml.Parse(`<domain type='qemu'><name>web</name>
<uuid>00112233-4455-6677-8899-aabbccddeeff</uuid><metadata><v:nics xmlns:v="urn:vmnet:nics:1">
<v:nic id="net0" bridge="br-int" iface-id="g1" ovsdb="/run/ovs/db.sock" vlan="7"/><v:nic id="net1" bridge="br0"/>
</v:nics></metadata><devices>
<interface type='ethernet'><mac address='52:54:00:00:00:01'/><target dev='web-0' managed='no'/>
<model type='virtio'/><alias name='ua-vmnet-net0'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:02'/><target dev='web-1' managed='no'/>
<model type='virtio'/><alias name='ua-vmnet-net1'/></interface></devices></domain>`)
	if err != nil {
		t.Fatal(err)
	}
	r, ok := recordOf("web", def, def.Interfaces[0])
	if !ok || r.Type != nic.TypeOVS || r.Source != "br-int" || r.IfaceID != "g1" || r.OVSDB != "/run/ovs/db.sock" ||
		r.Port != "vlan:7" || r.MAC.String() != (net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}).String() {
		t.Errorf("%v: %+v", ok, r)
	}
	if r, ok := recordOf("web", def, def.Interfaces[1]); !ok || r.Type != nic.TypeTap || r.OVSDB != "" {
		t.Errorf("%v: %+v", ok, r)
	}
}
