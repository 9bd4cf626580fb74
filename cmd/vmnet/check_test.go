package main

import (
	"bytes"
	"testing"

	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func TestATapWithoutAGuestIsNamedAlone(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out}
	const found = "nobody: it is left over"
	err := a.printChecked(tapmgr.Checked{Differences: []nic.Difference{
		{VM: "P2", NIC: "net0", Interface: "P2-net0", What: "holder", Want: "a guest", Found: found},
		{Interface: "tap0", What: "holder", Want: "a guest", Found: found},
	}})
	if err == nil {
		err = a.printActions([]nic.Action{{Interface: "tap0", Action: "removed: nobody holds it", Changed: true}}, true)
	}
	const want = `P2/net0 P2-net0: holder: want a guest, found nobody: it is left over
tap0: holder: want a guest, found nobody: it is left over
tap0: would be removed: nobody holds it
`
	if err != nil || out.String() != want {
		t.Errorf("%v; got\n%swant\n%s", err, &out, want)
	}
}
