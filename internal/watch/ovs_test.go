package watch

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/ovs"
	"vmnet/internal/ovstest"
)

const ovsAlias = "vmnet vm=P2 nic=net0 type=ovs source=br-int mac=52:54:00:00:00:01"

// TestRows: a database is tidied when a tap of it has gone, and again after a failure.
func TestRows(t *testing.T) {
	fault := errors.New("a fault")
	var asked [][]string
	var fails error
	r := newRows(func(_ context.Context, paths ...string) error {
		asked = append(asked, paths)
		return fails
	})
	once := func(want error) {
		t.Helper()
		fails = want
		if err := r.once(t.Context()); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	r.gone(&rtnl.Link{})
	r.gone(&rtnl.Link{Alias: "vmnet vm=P2 nic=net0 type=tap source=br0 mac=52:54:00:00:00:01"})
	if len(r.wake) != 0 {
		t.Error("roused by a link that was no port of Open vSwitch")
	}
	r.gone(&rtnl.Link{Alias: ovsAlias + " ovsdb=/db"})
	if len(r.wake) != 1 {
		t.Error("not roused")
	}
	once(fault)
	once(nil)
	r.gone(&rtnl.Link{Alias: ovsAlias})
	once(nil)
	once(nil)
	want := [][]string{{"/db"}, {"/db"}, {""}, nil}
	if !slices.EqualFunc(asked, want, slices.Equal) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

// TestLiveRows: the port of a guest that is killed goes at once, also one of the time before the
// watch, and also once a database is back that was away.
func TestLiveRows(t *testing.T) {
	h := newHost(t)
	o := ovstest.New(t, h.ns)
	o.Vsctl("--no-wait", "add-br", "br-int")
	h.m.UseDatabases(o.Socket())
	newTap := func(name string) *tun.Tap {
		t.Helper()
		tap, err := tun.Create(h.ns, name, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tap.Close() })
		l, err := h.nl.Link(name)
		if err == nil {
			err = h.nl.SetQuiet(l.Index, rtnl.Alias(ovsAlias+" ovsdb="+o.Socket()))
		}
		if err != nil {
			t.Fatal(err)
		}
		inode, err := h.ns.Inode()
		if err != nil {
			t.Fatal(err)
		}
		owner := ovs.Owner{VM: "P2", NIC: "net0", Place: ovs.Here(inode), Link: l.Index}
		o.Vsctl("--no-wait", "add-port", "br-int", name, "--",
			"set", "Port", name, `external_ids:vmnet="`+owner.String()+`"`)
		return tap
	}
	gone := func(when string) {
		t.Helper()
		nstest.Eventually(t, patience, when, func() bool { return o.Vsctl("list-ports", "br-int") == "" })
	}
	if err := newTap("before").Close(); err != nil {
		t.Fatal(err)
	}
	h.watch(nil)
	gone("a row of the time before goes")
	tap := newTap("tap0")
	killed := time.Now()
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	_, at := h.reported("port of br-int removed", "tap0")
	gone("the row goes")
	t.Logf("the row has gone after %v", at.Sub(killed))

	tap = newTap("tap1")
	o.StopDatabase()
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	h.reported("ports of Open vSwitch are not removed yet", "")
	o.StartDatabase()
	gone("the row goes once the database is back")
}
