package declared

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge/brport"
)

func TestPorts(t *testing.T) {
	def := definition(t, "web", nics(`
		<v:nic id="net0" bridge="br0" isolated="yes"/>
		<v:nic mac="52:54:00:00:00:03" vlan="20"/>
		<v:nic id="net3" isolated="yes"/>
		<v:nic mac="52:54:00:00:00:77" hairpin="yes"/>
		<v:nic id="later" mac="52:54:00:00:00:78" no-flood="yes"/>
		<v:nic id="unknown" no-learning="yes"/>`))
	want := []NIC{
		{MAC: mac(3), Interface: def.Interfaces[2], Port: brport.Settings{VLAN: 20}},
		{ID: "net3", MAC: mac(4), Interface: def.Interfaces[3], Port: brport.Settings{Isolated: true}},
		{MAC: mac(0x77), Port: brport.Settings{Hairpin: true}},
		{ID: "later", MAC: mac(0x78), Port: brport.Settings{NoFlood: true}},
	}
	got, err := Ports(def)
	if diff := cmp.Diff(want, got, sameIP); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if none, err := Ports(definition(t, "web", "")); err != nil || none != nil {
		t.Errorf("without an element: %v, %v", none, err)
	}
}

func TestPortsRefuses(t *testing.T) {
	for inside, want := range map[string]string{
		`<v:nic id="net0" isolated="yes"/>`:                         `its interface has type "ethernet"`,
		`<v:nic mac="52:54:00:00:00:05" isolated="yes"/>`:           `its interface has type "direct"`,
		`<v:nic id="net3" mac="52:54:00:00:00:03" isolated="yes"/>`: `has the MAC 52:54:00:00:00:04, and another one 52:54:00:00:00:03`,
		`<v:nic mac="52:54:00:00:00:06" isolated="yes"/>`:           `two interfaces have the MAC`,
		`<v:nic mac="52:54:00:00:00:77" isolatd="yes"/>`:            `attribute "isolatd" is not known`,
		`<v:nic mac="52:54:00:00:00:77" vlan="5000"/>`:              `VLAN 5000`,
		`text`: `text "text"`,
	} {
		if got, err := Ports(definition(t, "web", nics(inside))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nis %+v, %v\nwant an error with %s", inside, got, err, want)
		}
	}
}
