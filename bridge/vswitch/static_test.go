package vswitch

import (
	"errors"
	"io/fs"
	"net"
	"slices"
	"strings"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
)

// TestLockedTwice checks that a static address of one port cannot become another's, and stays when
// the other port is refused.
func TestLockedTwice(t *testing.T) {
	locked := vport.Config{MACs: []net.HardwareAddr{mac(8), mac(7)}}
	l := newLAN(t, map[string]vport.Config{"a": {MACs: []net.HardwareAddr{mac(7)}}, "b": {}})
	w, far, err := SocketPair(0)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if p, err := l.sw.AddPort("c", w, locked); !errors.Is(err, fs.ErrExist) ||
		!strings.Contains(err.Error(), "02:00:00:00:00:07 is a static address of port a") {
		t.Errorf("%v, %v", p, err)
	}
	if n := l.sw.FDB().Stats().Entries; n != 1 {
		t.Errorf("%d entries", n)
	}
	l.send("b", etherFrame(all, mac(7), nil, 46))
	if got := names(l.send("b", etherFrame(mac(7), mac(2), nil, 46))); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the frame went to %q", got)
	}
	locked.VLAN = 5 // a VLAN in which no port has it
	l.add("c", locked)
}

// TestStaticAddresses adds and removes static entries in each VLAN. An address that a port is
// locked to must stay.
func TestStaticAddresses(t *testing.T) {
	locked := access(10)
	locked.MACs = []net.HardwareAddr{mac(7)}
	l := newLAN(t, map[string]vport.Config{"locked": locked, "trunk": trunk(0, 10, 20), "plain": {}})
	for _, c := range []struct {
		port string
		mac  net.HardwareAddr
		vlan int
		want error
		text string
	}{
		{"trunk", mac(7), 10, fs.ErrExist, "02:00:00:00:00:07 in VLAN 10 is a static address of port locked"},
		{"trunk", mac(7), 20, nil, ""},
		{"locked", mac(7), 0, nil, ""},
		{"trunk", mac(8), 0, brport.ErrInvalid, "no VLAN for untagged frames"},
		{"trunk", mac(8), 30, brport.ErrInvalid, "port trunk is not in it"},
		{"plain", mac(8), 0, nil, ""},
		{"plain", mac(8), 1, nil, ""},
		{"nobody", mac(8), 0, fs.ErrNotExist, ""},
	} {
		err := l.sw.AddStatic(c.port, c.mac, c.vlan)
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, c := range []struct {
		mac  net.HardwareAddr
		vlan int
		text string
	}{
		{mac(7), 10, "static address of port locked"},
		{mac(7), 0, "in 2 VLANs"},
		{mac(7), 20, ""},
		{mac(8), 0, ""},
		{mac(8), 0, "does not know"},
	} {
		if err := l.sw.Forget(c.mac, c.vlan); (err != nil) != (c.text != "") ||
			err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("forget %v in VLAN %d: %v", c.mac, c.vlan, err)
		}
	}
}
