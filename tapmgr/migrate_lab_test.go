package tapmgr_test

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/bridges"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/lab"
)

// TestLabMigrateInVLAN migrates a guest that is paused between two bridges that filter VLANs, with
// port security on both sides: its frames are in its VLAN, before and after, and in no other.
func TestLabMigrateInVLAN(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.cable()
	trunk := brport.Settings{Trunk: []brport.VLANRange{{First: 10, Last: 20}}}
	for end, br := range map[string]string{"c0": "br1", "c1": "br2"} {
		h.bridge(bridge.Config{Name: br, VLANFiltering: true})
		if err := bridges.AddPort(h.nl, h.link(br), h.link(end), trunk); err != nil {
			t.Fatal(err)
		}
	}
	ports := h.accessPorts("br1", 10, 20)
	in := func(g *guest, br string) nic.Spec {
		s := g.prepared("net0")
		s.Bridge, s.Port.VLAN = br, 10
		s.Security = nic.Security{Checks: portsec.All, EtherTypes: []portsec.EtherType{0x88b5}}
		s.IP = []netip.Addr{netip.MustParseAddr(guestAddr)}
		return s
	}
	source := h.booted(testvm.Config{Name: "S", Paused: true, ExtraArgs: migratable})
	spec := in(source, "br1")
	spec.Prepared = false
	h.attach(spec)
	ports.sends = h.senderOf(source.name)
	ports.passes(spec.MAC, 0, 10, 20)
	ports.sends.close()
	g := h.target()
	h.prepare(in(g, "br2"))
	uri := "unix:" + filepath.Join(t.TempDir(), "migration")
	h.execute(g, "migrate-incoming", map[string]any{"uri": uri})
	h.execute(source, "migrate", map[string]any{"uri": uri})
	if _, err := h.Commit(h.context(60*time.Second), nic.Target{VM: g.name}, "", true); err != nil {
		t.Fatal(err)
	}
	ports.sends = h.senderOf(g.name)
	defer ports.sends.close()
	ports.passes(spec.MAC, 0, 10, 20)
	forged := []byte{0x52, 0x54, 0, 0, 0, 0x99}
	everybody := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	ports.sends.send(slices.Concat(everybody, forged, []byte{0x88, 0xb5}, make([]byte, 60)))
	ports.passes(spec.MAC, 0, 10, 20)
	if ports.heard[10].hearsFrom(forged, time.Now()) {
		t.Error("a frame with another's address arrives")
	}
	if got := h.check(); len(got) > 0 {
		t.Errorf("check finds %+v", got)
	}
}
