package ovs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/ovsdb"
	"vmnet/internal/ovstest"
)

// patience is how long things may take that need little time on an idle machine.
const patience = 2 * time.Minute

// withSwitch returns a switch that runs, with bridge br-int, and the namespace of its devices.
func withSwitch(t *testing.T) (*ovstest.OVS, *netns.NS) {
	t.Helper()
	nstest.RequireUserNS(t)
	ns := nstest.New(t)
	o := ovstest.New(t, ns)
	o.StartSwitch()
	o.AddBridge("br-int")
	return o, ns
}

// newPort makes a tap, and returns what its port should be.
func newPort(t *testing.T, ns *netns.NS, i int) Config {
	t.Helper()
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	name := fmt.Sprint("tap", i)
	tap, err := tun.Create(ns, name, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.Close() })
	l, err := nl.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	inode, err := ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	owner := Owner{VM: fmt.Sprint("P", i), NIC: "net0", Place: Here(inode), Link: l.Index}
	return Config{Name: name, Owner: owner, IfaceID: fmt.Sprint("x", i)}
}

// TestLiveFullDisk: a database whose disk is full refuses a port at once, in its words, and has
// nothing of it. Once there is room, the same port works.
func TestLiveFullDisk(t *testing.T) {
	o, ns := withSwitch(t)
	cfg := newPort(t, ns, 0)
	fill := onSmallDisk(t, o)
	c, err := Dial(t.Context(), o.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Close() }()
	b, err := c.Bridge(t.Context(), "br-int")
	if err != nil {
		t.Fatal(err)
	}
	free := fill()
	for i := 0; err == nil; i++ { // what is left of the last page of the file
		if i == 64 {
			t.Fatal("the database still has room")
		}
		ids := ovsdb.Map{"fill": fmt.Sprintf("%d %s", i, strings.Repeat("x", 200))}
		_, err = c.Transact(t.Context(), ovsdb.Update(schema, ovsdb.Row{"external_ids": ids}))
	}
	if !strings.Contains(err.Error(), "No space left on device") {
		t.Fatal(err)
	}
	err = c.Add(t.Context(), b, cfg)
	if err == nil || errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "No space left on device") ||
		!strings.Contains(err.Error(), "df -h") {
		t.Errorf("with a full disk: %v", err)
	}
	if got, err := c.Named(t.Context(), cfg.Name); err != nil || len(got) > 0 {
		t.Errorf("left: %+v, %v", got, err)
	}
	free()
	nstest.Eventually(t, patience, "a port is added once there is room", func() bool {
		c.Close() // an Add that has had no reply ends the connection
		if c, err = Dial(t.Context(), o.Socket()); err != nil {
			t.Fatal(err)
		}
		return c.Add(t.Context(), b, cfg) == nil
	})
	if err := c.Withdraw(t.Context(), cfg.Name, cfg.Owner); err != nil {
		t.Error(err)
	}
}

// onSmallDisk moves the database to a file system of 64 KiB. fill takes what is free there, until
// free is called.
func onSmallDisk(t *testing.T, o *ovstest.OVS) (fill func() (free func())) {
	t.Helper()
	disk, file := filepath.Join(o.Dir, "disk"), filepath.Join(o.Dir, "conf.db")
	mount := func(program string, args ...string) {
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", program, args, err, out)
		}
	}
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	mount("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk)
	t.Cleanup(func() {
		o.StopDatabase()
		mount("umount", disk)
	})
	o.StopDatabase()
	text, err := os.ReadFile(file)
	err = errors.Join(err, os.WriteFile(filepath.Join(disk, "conf.db"), text, 0o600), os.Remove(file),
		os.Symlink(filepath.Join(disk, "conf.db"), file))
	if err != nil {
		t.Fatal(err)
	}
	o.StartDatabase()
	return func() func() {
		path := filepath.Join(disk, "fill")
		if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err == nil {
			t.Fatal("the disk is not full")
		}
		return func() {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}
