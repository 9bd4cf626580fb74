package guest

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt/domainxml"
	"vmnet/libvirt/libvirttest/fakelibvirt"
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

// TestNICsOfLibvirt: what libvirt knows of vmnet's NICs, and of no other process. After a failure
// it is asked no more.
func TestNICsOfLibvirt(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	_, d := f.open()
	f.plug(d, f.spec(func(s *nic.Spec) { s.Port = isolated }))
	pids := []int{os.Getpid(), f.PID}
	found := f.OfLibvirt(t.Context(), pids)
	if len(found) != 1 || found[0].PID != f.PID || found[0].Interface != device || found[0].Record.Source != "br0" ||
		found[0].Record.NIC != "net0" || found[0].Record.Port != isolated.String() {
		t.Errorf("%+v", found)
	}
	const undeclared = `<interface type='ethernet'><mac address='52:54:00:00:00:09'/><target dev='tap9'/>` +
		`<alias name='%'/></interface>`
	running, _ := f.Definitions()
	for alias, what := range map[string]string{"net1": "of libvirt", "ua-vmnet-net9": "not declared"} {
		with := slices.Concat(running.Interfaces, []string{strings.ReplaceAll(undeclared, "%", alias)})
		f.Define(fakelibvirt.Definition{Interfaces: with, Metadata: running.Metadata}, fakelibvirt.Definition{})
		if found := f.OfLibvirt(t.Context(), pids); len(found) != 1 {
			t.Errorf("one that is %s: %+v", what, found)
		}
	}

	p, err := qemu.ByPID(f.PID)
	if err != nil {
		t.Fatal(err)
	}
	r := f.Reader()
	defer r.Close()
	if all := r.Interfaces(t.Context(), p); len(all) != 2 {
		t.Errorf("%+v", all)
	}
	if def := r.Definition(t.Context(), qemu.Process{}); def != nil {
		t.Errorf("of a process without a UUID: %+v", def)
	}
	calls := func() (n int) {
		for _, call := range f.Asked() {
			if call == "DOMAIN_GET_XML_DESC" {
				n++
			}
		}
		return n
	}
	before := calls()
	for _, tc := range []struct {
		code  int
		asked int
	}{{42, 1}, {1, 2}, {1, 2}} { // a domain that has gone; a failure; once more
		f.Daemon.Behave(fakelibvirt.Behaviour{Refuse: map[string]fakelibvirt.Refusal{
			"DOMAIN_GET_XML_DESC": {Code: tc.code, Message: "no"},
		}})
		if all := r.Interfaces(t.Context(), p); len(all) != 0 || calls()-before != tc.asked {
			t.Errorf("%+v: %+v, asked %d times", tc, all, calls()-before)
		}
	}
	none := (&Finder{Libvirt: "/nowhere/sock"}).Reader()
	defer none.Close()
	if def := none.Definition(t.Context(), p); def != nil || none.failed == nil {
		t.Errorf("without libvirt: %+v", def)
	}
}
