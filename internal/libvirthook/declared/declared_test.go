package declared

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"vmnet/bridge/brport"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portrate"
	"vmnet/bridge/portsec"
	"vmnet/libvirt/domainxml"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// interfaces are those of the domains here: three that are handed over, two that libvirt makes, and
// others.
const interfaces = `
<interface type='ethernet'><mac address='52:54:00:00:00:01'/><target dev='web-0' managed='no'/><model type='virtio'/><driver queues='4'/><mtu size='1400'/><alias name='ua-vmnet-net0'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:02'/><target dev='web-1' managed='no'/><model type='e1000e'/><alias name='ua-vmnet-net1'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:03'/><source bridge='br0'/><target dev='vnet0'/><alias name='net2'/></interface>
<interface type='network'><mac address='52:54:00:00:00:04'/><source network='default'/><alias name='ua-vmnet-net3'/></interface>
<interface type='direct'><mac address='52:54:00:00:00:05'/><source dev='eth0' mode='bridge'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:06'/><source bridge='br0'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:06'/><source bridge='br1'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:07'/><target dev='vnet7' managed='no'/><alias name='ua-vmnet-net7'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:08'/><target dev='web-8'/><alias name='ua-vmnet-net8'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:09'/><target dev='web-9' managed='no'/><model type='virtio-transitional'/><driver name='qemu'/><alias name='ua-vmnet-net9'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:0a'/><target managed='no'/><alias name='ua-vmnet-net10'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:0b'/><alias name='ua-vmnet-net11'/></interface>
<interface type='direct'><mac address='52:54:00:00:00:0c'/><source dev='eth0' mode='private'/><alias name='ua-vmnet-net12'/></interface>
<interface type='direct'><mac address='52:54:00:00:00:0d'/><source dev='eth1' mode='passthrough'/><target dev='web-13'/><alias name='ua-vmnet-net13'/></interface>
`

func definition(t *testing.T, guest, metadata string) *domainxml.Definition {
	t.Helper()
	def, err := domainxml.Parse(fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid>
<metadata>%s</metadata><devices>%s</devices></domain>`, guest, metadata, interfaces))
	if err != nil {
		t.Fatal(err)
	}
	return def
}

func nics(inside string) string { return `<v:nics xmlns:v="` + Namespace + `">` + inside + `</v:nics>` }

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, last} }

func TestParse(t *testing.T) {
	def := definition(t, "web", nics(`
		<!-- one of each -->
		<v:nic id="net0" bridge="br0" trunk="2-5,7" native="1" isolated="yes" hairpin="no"/>
		<v:nic id="net1" macvtap="eth0" mode="source" source-mac="02:00:00:00:00:01  02:00:00:00:00:02" rx-filter="none" mac="52:54:00:00:00:02"></v:nic>
		<v:nic mac="52:54:00:00:00:03" vlan="20"/>
		<v:nic id="net3" no-learning="yes" no-flood="yes" forward="lldp,lacp"/>
		<v:nic id="net9" macvtap="eth1" mode="passthru" nopromisc="yes" port-security="mac,ip" ip="192.0.2.7 2001:db8::/64" allow-ethertype="0x88f7 0x88b5"/>
		<v:nic id="net8" network="lab" ip="10.66.0.20 fd66::20" allow-in="tcp:22,from=10.0.0.0/8 icmp"/>`))
	spec := func(nicID, device string, last byte) nic.Spec {
		return nic.Spec{
			Target: nic.Target{VM: "web"}, NIC: nicID, Device: device, MAC: mac(last), Queues: 1,
			Vhost: nic.VhostAuto, Via: nic.ViaLibvirt, DeviceOptions: map[string]string{},
		}
	}
	trunk := brport.Settings{
		Trunk: []brport.VLANRange{{First: 2, Last: 5}, {First: 7, Last: 7}}, Native: 1,
		Isolated: true,
	}
	onBridge := spec("net0", "web-0", 1)
	onBridge.Bridge, onBridge.Port, onBridge.Queues, onBridge.MTU, onBridge.Model = "br0", trunk, 4, 1400,
		"virtio-net-pci"
	source := spec("net1", "web-1", 2)
	source.Model = "e1000e"
	source.Lower = &nic.Lower{
		Kind: vtap.Macvtap, Device: "eth0", Mode: "source", RxFilter: "none",
		Sources: []net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}},
	}
	passthru := spec("net9", "web-9", 9)
	passthru.Model, passthru.Vhost = "virtio-net-pci-transitional", nic.VhostOff
	passthru.Lower = &nic.Lower{Kind: vtap.Macvtap, Device: "eth1", Mode: "passthru", NoPromisc: true}
	passthru.IP = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	passthru.Security = nic.Security{
		Checks: portsec.MAC | portsec.IP, EtherTypes: []portsec.EtherType{0x88f7, 0x88b5},
		Nets: []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")},
	}
	inLab := spec("net8", "web-8", 8)
	inLab.AllowIn = inbound.Rules{
		{Protocol: inbound.TCP, First: 22, Last: 22, From: netip.MustParsePrefix("10.0.0.0/8")},
		{Protocol: inbound.ICMP},
	}
	inLab.Network, inLab.IP = "lab", []netip.Addr{netip.MustParseAddr("10.66.0.20"), netip.MustParseAddr("fd66::20")}
	want := []NIC{
		{ID: "net0", MAC: mac(1), Interface: def.Interfaces[0], Made: true, Spec: onBridge, Port: trunk},
		{ID: "net1", MAC: mac(2), Interface: def.Interfaces[1], Made: true, Spec: source},
		{MAC: mac(3), Interface: def.Interfaces[2], Port: brport.Settings{VLAN: 20}},
		{
			ID: "net3", MAC: mac(4), Interface: def.Interfaces[3],
			Port: brport.Settings{NoLearning: true, NoFlood: true, Forward: 1<<2 | 1<<14},
		},
		{ID: "net9", MAC: mac(9), Interface: def.Interfaces[9], Made: true, Spec: passthru},
		{ID: "net8", MAC: mac(8), Interface: def.Interfaces[8], Made: true, Spec: inLab},
	}
	got, err := Parse(def)
	if diff := cmp.Diff(want, got, sameIP); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	for i, place := range []string{"br0", "eth0", "", "", "eth1", "lab"} {
		if got[i].Place() != place {
			t.Errorf("%s is at %q, want %q", got[i].Label(), got[i].Place(), place)
		}
	}
	written, err := XML(got)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(definition(t, "web", namespaced(written)))
	if diff := cmp.Diff(want, again, sameIP); err != nil || diff != "" {
		t.Errorf("written as %s: %v\n%s", written, err, diff)
	}
}

// TestParseClone: a clone of a guest keeps its aliases. It has other MACs, and no names of devices
// (cloner.py of virt-manager).
func TestParseClone(t *testing.T) {
	got, err := Parse(definition(t, "clone", nics(`
		<v:nic id="net0" mac="52:54:00:00:00:ff" bridge="br0"/>
		<v:nic id="net3" mac="52:54:00:00:00:fe" isolated="yes"/>
		<v:nic id="net8" bridge="br0" vlan="7"/>
		<v:nic id="net11" bridge="br1"/>
		<v:nic id="net12" macvtap="eth0" mode="source" source-mac="02:00:00:00:00:01"/>
		<v:nic id="net13" macvtap="eth1" mode="passthru"/>`)))
	if err != nil || len(got) != 6 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, want := range []struct {
		mac     byte
		device  string
		adopted bool
	}{
		{1, "web-0", false},
		{4, "", false},
		{8, "web-8", true},
		{0x0b, "", true},
		{0x0c, "", true},
		{0x0d, "web-13", true},
	} {
		if n := got[i]; n.MAC.String() != mac(want.mac).String() || n.Spec.Device != want.device ||
			n.Adopted() != want.adopted {
			t.Errorf("%+v, want %+v", n, want)
		}
	}
}

// namespaced is what libvirt makes of an element without a namespace.
func namespaced(text string) string {
	return strings.Replace(text, "<nics", `<nics xmlns="`+Namespace+`"`, 1)
}

func TestParseNothing(t *testing.T) {
	for _, metadata := range []string{
		"", `<o:nics xmlns:o="urn:other"><o:nic wrong="x"/></o:nics>`, "<nics/>",
		nics(""), "<x xmlns='urn:x'>" + nics("<v:nic/>") + "</x>",
	} {
		if got, err := Parse(definition(t, "web", metadata)); err != nil || len(got) != 0 {
			t.Errorf("%s: %v, %v", metadata, got, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, row := range [][2]string{
		{
			`<v:nic id="net0" bridge="br0" isolatd="yes"/>`,
			`nic "net0": attribute "isolatd" is not known: want id, mac, bridge, network, routed, macvtap, ip,`,
		},
		{`<v:nic id="net0" bridge="br0" isolated="true"/>`, `nic "net0": attribute isolated="true": want yes or no`},
		{`<v:nic id="net0" bridge="br0" vlan="4095"/>`, `VLAN 4095: want 1 to 4094`},
		{`<v:nic id="net0" bridge="br0" vlan="x"/>`, `nic "net0": attribute vlan="x":`},
		{`<v:nic id="net0" bridge="br0" trunk="5-2"/>`, `want the lower number first`},
		{`<v:nic id="net0" bridge="br0" vlan="2" trunk="3"/>`, `both VLAN and trunk`},
		{`<v:nic id="net0" bridge="br0" isolated="yes" isolated="no"/>`, `attribute "isolated" occurs twice`},
		{`<v:nic id="net0" bridge="br0" v:isolated="yes"/>`, `attribute "isolated" has a namespace`},
		{`<v:nic id="net0" bridge=""/>`, `attribute "bridge" is empty`},
		{`<v:nic id="net0" bridge="a b"/>`, `bridge name "a b"`},
		{`<v:nic id="net0" bridge="br0" macvtap="eth0"/>`, `bridge and macvtap: a NIC has only one of them`},
		{`<v:nic id="net0" bridge="br0" mode="passthru"/>`, `attribute "mode" needs macvtap`},
		{`<v:nic id="net0" macvtap="eth0" mode="l2"/>`, `mode "l2"`},
		{`<v:nic id="net0" macvtap="eth0" mode="source" source-mac="x"/>`, `want six bytes`},
		{`<v:nic id="net0" macvtap="eth0" rx-filter="all"/>`, `attribute rx-filter="all": want allmulti`},
		{`<v:nic id="net0" macvtap="eth0" isolated="yes"/>`, `settings of a port of a bridge or switch`},
		{`<v:nic id="net0" ipvtap="eth0"/>`, `attribute "ipvtap": libvirt cannot take an ipvtap by name`},
		{`<v:nic id="net0" bridge="br0" queues="4"/>`, `attribute "queues" is not known`},
		{`<v:nic id="NET" bridge="br0"/>`, `NIC id "NET"`},
		{`<v:nic bridge="br0"/>`, `nic without id and mac: it needs an id, since vmnet makes its device`},
		{`<v:nic mac="52:54:00:00:00:01" bridge="br0"/>`, `it needs an id, since`},
		{`<v:nic isolated="yes"/>`, `it needs an id or a mac`},
		{`<v:nic id="net0"/>`, `it declares nothing`},
		{`<v:nic mac="1:2" isolated="yes"/>`, `attribute mac="1:2":`},
		{`<v:nic mac="00:00:00:00:00:00:00:01" isolated="yes"/>`, `want 6 bytes`},
		{`<v:nic id="net5" bridge="br0"/>`, `no interface has <alias name='ua-vmnet-net5'/>`},
		{`<v:nic id="net5" isolated="yes"/>`, `no interface has <alias name='ua-vmnet-net5'/> (or name it by mac=)`},
		{
			`<v:nic mac="52:54:00:00:00:ff" isolated="yes"/>`,
			`no interface has the MAC 52:54:00:00:00:ff (a clone of a guest has other MACs: use id=`,
		},
		{`<v:nic id="net5" mac="52:54:00:00:00:ff" isolated="yes"/>`, `no interface has the MAC 52:54:00:00:00:ff`},
		{
			`<v:nic id="net0" mac="52:54:00:00:00:02" bridge="br0"/>`,
			`has the MAC 52:54:00:00:00:01, and another one 52:54:00:00:00:02`,
		},
		{`<v:nic mac="52:54:00:00:00:06" isolated="yes"/>`, `two interfaces have the MAC 52:54:00:00:00:06`},
		{`<v:nic mac="52:54:00:00:00:05" isolated="yes"/>`, `its interface has type "direct"`},
		{`<v:nic id="net0" isolated="yes"/>`, `its interface has type "ethernet"`},
		{`<v:nic id="net3" bridge="br0"/>`, `its interface must be <interface type='ethernet'>, not "network"`},
		{
			`<v:nic id="net8" macvtap="eth0"/>`,
			`add <target dev='web-net8' managed='no'/> to its interface: virsh edit web)`,
		},
		{
			`<v:nic id="net10" macvtap="eth0"/>`,
			`add <target dev='web-net10' managed='no'/> to its interface: virsh edit web)`,
		},
		{
			`<v:nic id="net10" bridge="br0"/>`,
			`remove <target managed='no'/> from its interface, and libvirt makes the tap: virsh edit web)`,
		},
		{
			`<v:nic id="net12" macvtap="eth1"/>`,
			`its interface is on "eth0", and macvtap="eth1": name the same parent device (virsh edit web)`,
		},
		{`<v:nic id="net12" macvtap="eth0" mode="passthru"/>`, `its interface has mode "private", and mode="passthru"`},
		{`<v:nic id="net13" macvtap="eth1"/>`, `its interface has mode "passthrough", and mode=""`},
		{
			`<v:nic id="net13" macvtap="eth1" mode="passthru" nopromisc="yes"/>`,
			`nopromisc needs a macvtap that vmnet makes`,
		},
		{`<v:nic id="net0" bridge="br0" network="lab"/>`, "bridge and network: a NIC has only one of them"},
		{`<v:nic id="net0" bridge="br0" ip="10.66.0.20"/>`, `attribute "ip" needs network, routed or port-security`},
		{`<v:nic id="net0" bridge="br0" port-security="all"/>`, `ip needs the NIC's own addresses`},
		{`<v:nic id="net0" bridge="br0" port-security="none" allow-ethertype="0x88f7"/>`, `need port security`},
		{`<v:nic mac="52:54:00:00:00:03" port-security="mac"/>`, `vmnet checks only the devices that it makes`},
		{
			`<v:nic id="net0" network="lab" ip="10.66.0.20 x"/>`,
			`invalid argument "x" for "--ip" flag: want an IP address`,
		},
		{`<v:nic mac="52:54:00:00:00:01" network="lab"/>`, "it needs an id"},
		{`<v:nic id="net12" bridge="br0"/>`, `its interface must be <interface type='ethernet'>, not "direct"`},
		{`<v:nic id="net7" bridge="br0"/>`, `device vnet7: libvirt drops names of this form`},
		{
			`<v:nic id="net0" bridge="br0"/><v:nic id="net0" bridge="br0"/>`,
			`nic "net0": its interface already belongs to nic "net0"`,
		},
		{`<v:nic id="net0" bridge="br0"><v:vlan/></v:nic>`, `nic "net0": it contains elements`},
		{`<v:nic id="net0" bridge="br0">text</v:nic>`, `nic "net0": text "text"`},
		{`<v:nic id="net0" bridge="br0"/>text`, `text "text"`},
		{`<v:net id="net0" bridge="br0"/>`, `element "net" is not known: want nic`},
		{`<nic id="net0" bridge="br0"/>`, `element "nic" is not known: want nic, in namespace ` + Namespace},
		{strings.Repeat(`<v:nic mac="52:54:00:00:00:03" vlan="20"/>`, 257), `more than 256 elements nic`},
	} {
		inside, want := row[0], row[1]
		got, err := Parse(definition(t, "web", nics(inside)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nis %+v, %v\nwant an error with %s", inside, got, err, want)
		}
	}
	attr := strings.Replace(nics(`<v:nic id="net0" bridge="br0"/>`), "<v:nics", `<v:nics version="2"`, 1)
	if _, err := Parse(definition(t, "web", attr)); err == nil ||
		!strings.Contains(err.Error(), "nics has no attributes") {
		t.Errorf("attribute of nics: %v", err)
	}
	long := strings.Repeat("g", nic.MaxVMName+1)
	if _, err := Parse(definition(t, long, nics(`<v:nic id="net0" bridge="br0"/>`))); err == nil ||
		!strings.Contains(err.Error(), fmt.Sprintf("guest name of %d bytes", len(long))) {
		t.Errorf("a long name: %v", err)
	}
}

// A NIC whose interface somebody has taken away does not keep the guest from starting.
func TestParseAbsent(t *testing.T) {
	const absent = `<v:nic id="net5" mac="52:54:00:00:00:ff" bridge="br0"/>`
	def, err := domainxml.Parse(`<domain type='qemu'><name>web</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid><metadata>` + nics(absent) + `</metadata>
<devices><interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface></devices></domain>`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(def)
	if err != nil || len(got) != 1 || !got[0].Absent() || got[0].ID != "net5" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Parse(definition(t, "web", nics(absent))); err == nil ||
		!strings.Contains(err.Error(), "(the one with ua-vmnet-net0 is not declared)") {
		t.Errorf("an id that is mistaken: %v", err)
	}
	for element, want := range map[string]bool{"": false, "<nics>" + strings.ReplaceAll(absent, "v:", "") +
		"</nics>": true, "<nics/>": false} {
		if has, err := Declares(element, "net5"); has != want || err != nil {
			t.Errorf("%s has it: %v, %v", element, has, err)
		}
	}
}

func TestPutAndRemove(t *testing.T) {
	element := nics(`<v:nic id="net0" bridge="br0"/><v:nic mac="52:54:00:00:00:03" vlan="20"/>`)
	for _, test := range []struct {
		text string
		nic  NIC
		put  string
	}{
		{
			"",
			NIC{ID: "net0", Made: true, Spec: nic.Spec{Bridge: "br<1"}},
			`<nics><nic id="net0" bridge="br&lt;1"/></nics>`,
		},
		{
			element,
			NIC{
				ID: "net0", MAC: mac(1), Made: true, Spec: nic.Spec{Bridge: "br1"},
				Port: brport.Settings{Isolated: true},
			},
			`<nics><nic mac="52:54:00:00:00:03" vlan="20"/><nic id="net0" mac="52:54:00:00:00:01" bridge="br1" isolated="yes"/></nics>`,
		},
		{
			element,
			NIC{MAC: mac(3), Port: brport.Settings{Hairpin: true}},
			`<nics><nic id="net0" bridge="br0"/><nic mac="52:54:00:00:00:03" hairpin="yes"/></nics>`,
		},
		{
			"",
			NIC{ID: "net0", Made: true, Spec: nic.Spec{
				Bridge: "br0", Rates: portrate.Config{Up: portrate.Limit{Bits: 1e8}, Shape: true},
			}},
			`<nics><nic id="net0" bridge="br0" rate-up="100M" shape="yes"/></nics>`,
		},
	} {
		if got, err := Put(test.text, test.nic); err != nil || got != test.put {
			t.Errorf("put: %v\n%s, want\n%s", err, got, test.put)
		}
	}
	for id, want := range map[string]string{
		"net0": `<nics><nic mac="52:54:00:00:00:03" vlan="20"/></nics>`,
		"net1": `<nics><nic id="net0" bridge="br0"/><nic mac="52:54:00:00:00:03" vlan="20"/></nics>`,
	} {
		if got, err := Remove(element, NIC{ID: id}); err != nil || got != want {
			t.Errorf("remove %s: %v\n%s, want\n%s", id, err, got, want)
		}
	}
	if got, err := Remove(nics(`<v:nic id="net0" bridge="br0"/>`), NIC{ID: "net0"}); err != nil || got != "" {
		t.Errorf("the last one: %q, %v", got, err)
	}
	spec := nic.Spec{
		Target: nic.Target{VM: "web"}, NIC: "net0", Bridge: "br0", MAC: mac(1),
		Port: brport.Settings{Isolated: true},
	}
	// no MAC, which a clone would not have
	if got, err := Declare("", spec); err != nil || got != `<nics><nic id="net0" bridge="br0" isolated="yes"/></nics>` {
		t.Errorf("declared as %s, %v", got, err)
	}
	for _, wrong := range []NIC{
		{},
		{ID: "net0"},
		{ID: "NET", Made: true, Spec: nic.Spec{Bridge: "br0"}},
		{Made: true, Spec: nic.Spec{Bridge: "br0"}},
		{ID: "net0", Made: true, Spec: nic.Spec{Lower: &nic.Lower{Kind: vtap.IPVtap, Device: "eth0"}}},
	} {
		if got, err := XML([]NIC{wrong}); err == nil {
			t.Errorf("%+v became %s", wrong, got)
		}
	}
	if _, err := Put("<nics", NIC{ID: "net0", Made: true, Spec: nic.Spec{Bridge: "br0"}}); err == nil {
		t.Error("a broken element was taken")
	}
}

// FuzzParse: what is taken is valid, and means the same when it is written and read again.
func FuzzParse(f *testing.F) {
	f.Add(`<v:nic id="net0" bridge="br0" trunk="2-5,7" native="1" isolated="yes"/>`)
	f.Add(
		`<v:nic id="net1" macvtap="eth0" mode="source" source-mac="02:00:00:00:00:01 02:00:00:00:00:02" rx-filter="none"/>`)
	f.Add(`<v:nic mac="52:54:00:00:00:03" vlan="20"/><!-- x --><v:nic id="net3" no-flood="yes"/>`)
	f.Add(`<v:nic id="net0"><v:nic/></v:nic></v:nics><v:nics>`)
	f.Fuzz(func(t *testing.T, inside string) {
		text := fmt.Sprintf(
			`<domain type='qemu'><name>web</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid><metadata>%s</metadata><devices>%s</devices></domain>`,
			nics(inside), interfaces)
		def, err := domainxml.Parse(text)
		if err != nil {
			return
		}
		got, err := Parse(def)
		if err != nil {
			return
		}
		for _, n := range got {
			if n.Made && n.Spec.Validate() != nil || n.Port.Validate() != nil || n.Made == (n.Place() == "") {
				t.Errorf("%+v", n)
			}
		}
		written, err := XML(got)
		if err != nil {
			t.Fatalf("%s: %v", inside, err)
		}
		if len(got) == 0 {
			return
		}
		def2, err := domainxml.Parse(strings.Replace(text, nics(inside), namespaced(written), 1))
		if err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		again, err := Parse(def2)
		if diff := cmp.Diff(got, again, sameIP); err != nil || diff != "" {
			t.Errorf("%s became %s: %v\n%s", inside, written, err, diff)
		}
	})
}

// TestAlias: a domain's XML and the names of NICs agree on the alias of an interface.
func TestAlias(t *testing.T) {
	if got, want := domainxml.Alias("net0"), nic.LibvirtAlias("net0"); got != want {
		t.Errorf("%q, and %q", got, want)
	}
}

// sameIP has package cmp compare addresses as a whole.
var sameIP = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}
