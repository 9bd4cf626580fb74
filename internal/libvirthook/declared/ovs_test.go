package declared

import (
	"strings"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/tapmgr/nic"
)

// TestOVS: a declared NIC on a bridge of Open vSwitch keeps its iface-id and its database, with
// which the guest starts again.
func TestOVS(t *testing.T) {
	spec := nic.Spec{Bridge: "br-int", IfaceID: "g1", OVSDB: "/run/ovs/db.sock"}
	n := NIC{ID: "net0", Made: true, Port: brport.Settings{VLAN: 7}, Spec: spec}
	got, err := Put("", n)
	want := `<nics><nic id="net0" bridge="br-int" iface-id="g1" ovsdb="/run/ovs/db.sock" vlan="7"/></nics>`
	if err != nil || got != want {
		t.Fatalf("put: %v\n%s, want\n%s", err, got, want)
	}
	back, err := Of(got, "net0")
	if err != nil || back.Bridge != spec.Bridge || back.IfaceID != spec.IfaceID || back.OVSDB != spec.OVSDB {
		t.Errorf("read as %+v, %v", back, err)
	}
	for inside, want := range map[string]string{
		`<v:nic id="net0" network="lab" iface-id="g1"/>`:  `attribute "iface-id" needs bridge, one of Open vSwitch`,
		`<v:nic id="net0" bridge="br0" ovsdb="db.sock"/>`: `ovsdb "db.sock": want a socket's absolute and clean path`,
	} {
		if got, err := Parse(definition(t, "web", nics(inside))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nis %+v, %v\nwant an error with %s", inside, got, err, want)
		}
	}
}
