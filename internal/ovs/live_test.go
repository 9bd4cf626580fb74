package ovs

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/nstest"
	"vmnet/internal/ovsdb"
	"vmnet/internal/ovstest"
)

// insert makes ports without a switch, which would have to carry out what Add writes.
func insert(t *testing.T, c *Conn, bridge string, cfgs ...Config) {
	t.Helper()
	var ops []ovsdb.Op
	var named ovsdb.Set[ovsdb.Named]
	for i, cfg := range cfgs {
		iface, port := fmt.Sprintf("i%d", i), fmt.Sprintf("p%d", i)
		row := columns(cfg.Settings)
		row["name"], row["interfaces"] = cfg.Name, ovsdb.Named(iface)
		row["external_ids"] = ovsdb.Map{ownerKey: cfg.Owner.String()}
		ops = append(ops, ovsdb.Insert("Interface", iface, ovsdb.Row{"name": cfg.Name, "external_ids": cfg.ids()}),
			ovsdb.Insert("Port", port, row))
		named = append(named, ovsdb.Named(port))
	}
	ops = append(ops, ovsdb.Mutate("Bridge", []ovsdb.Mutation{ovsdb.Change("ports", "insert", named)},
		ovsdb.Where("name", "==", bridge)))
	if _, err := c.Transact(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
}

// withBridge returns a database with bridge br-int, whose switch does not run.
func withBridge(t *testing.T) (*ovstest.OVS, *Conn) {
	t.Helper()
	nstest.RequireUserNS(t)
	o := ovstest.New(t, nil)
	o.Vsctl("--no-wait", "add-br", "br-int")
	c, err := Dial(t.Context(), o.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return o, c
}

// TestLiveSettings: what is written of a port's settings is read as the same.
func TestLiveSettings(t *testing.T) {
	o, c := withBridge(t)
	all := map[string]brport.Settings{
		"none": {}, "vlan": {VLAN: 4094}, "isolated": {Isolated: true, VLAN: 7},
		"trunk":  {Trunk: []brport.VLANRange{{First: 2, Last: 4}, {First: 9, Last: 9}}},
		"native": {Trunk: []brport.VLANRange{{First: 2, Last: 4}}, Native: 3},
		"all":    {Trunk: []brport.VLANRange{{First: 1, Last: 4094}}},
	}
	owner := Owner{VM: "P2", NIC: "net0", Place: Here(1), Link: 7}
	for name, s := range all {
		insert(t, c, "br-int", Config{Name: name, Settings: s, Owner: owner, IfaceID: "x", MAC: "52:54:00:00:00:01"})
	}
	ports, err := c.Ports(t.Context())
	if err != nil || len(ports) != len(all)+1 {
		t.Fatalf("%d ports, %v", len(ports), err)
	}
	for _, p := range ports {
		if want := all[p.Name]; !p.Settings.Equal(want) {
			t.Errorf("%s: %+v, want %+v", p.Name, p.Settings, want)
		}
		if p.Name != "br-int" && (p.Owner == nil || *p.Owner != owner || p.IfaceID != "x" || p.Bridge != "br-int") {
			t.Errorf("got %+v", p)
		}
	}
	for _, set := range []string{"vlan_mode=native-tagged", "vlan_mode=dot1q-tunnel", "tag=0"} {
		o.Vsctl("--no-wait", "set", "Port", "vlan", set)
		if p, err := c.Of(t.Context(), "vlan", owner); err != nil || p.Settings.Other == "" {
			t.Errorf("%s: %+v, %v", set, p, err)
		}
	}
	cfg := Config{Name: "vlan", Settings: brport.Settings{VLAN: 9}, Owner: owner, IfaceID: "y"}
	if err := c.Set(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if p, err := c.Of(t.Context(), "vlan", owner); err != nil || p.Settings.VLAN != 9 || p.IfaceID != "y" {
		t.Errorf("after Set: %+v, %v", p, err)
	}
	if err := CheckSettings(brport.Settings{Hairpin: true, NoFlood: true}); err == nil {
		t.Error("Open vSwitch has no hairpin")
	}
}

// TestLiveRemoveMany removes ports of which one has gone meanwhile, and one is another's now.
func TestLiveRemoveMany(t *testing.T) {
	o, c := withBridge(t)
	const count = 1001
	var cfgs []Config
	for i := range count {
		owner := Owner{VM: fmt.Sprint("P", i), NIC: "net0", Place: Here(1), Link: 1000 + i}
		cfgs = append(cfgs, Config{Name: fmt.Sprint("tap", i), Owner: owner, IfaceID: fmt.Sprint("x", i)})
	}
	insert(t, c, "br-int", cfgs...)
	all, err := c.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ours []Port
	for _, p := range all {
		if p.IsStale(Here(1), nil) {
			ours = append(ours, p)
		}
	}
	if len(ours) != count {
		t.Fatalf("%d are stale of %d", len(ours), count)
	}
	o.Vsctl("--no-wait", "del-port", "tap3", "--", "set", "Port", "tap9", "external_ids:vmnet=another's")
	start := time.Now()
	if err := c.Remove(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d ports are removed after %v", count, time.Since(start))
	if left := o.Vsctl("list-ports", "br-int"); left != "tap9" {
		t.Errorf("left: %q", left)
	}
	if err := c.Withdraw(t.Context(), "tap9", cfgs[9].Owner); err != nil {
		t.Error(err)
	}
	if err := c.CheckName(t.Context(), "tap9", Here(1)); !errors.Is(err, ErrTaken) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Bridge(t.Context(), "br-ex"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
