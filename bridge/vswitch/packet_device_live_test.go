package vswitch_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
)

// TestLivePacketDevice sets the device down and up, and removes it.
func TestLivePacketDevice(t *testing.T) {
	sw := newSwitch(t)
	guest := tapHost(t, sw, 0, 1, vport.Config{})
	outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
	veth(t, outside, middle, "lan0", 1500)
	outside.up(1500)
	up := addPort(t, sw, "up", openPacket(t, middle, "lan0"), vport.Config{})
	tcp(t, guest, outside, 1<<20)
	if err := middle.nl.LinkSetDown(middle.link("lan0")); err != nil {
		t.Fatal(err)
	}
	if err := ping(t, guest, outside.v4, 0); err == nil {
		t.Error("the host answers while the device is down")
	}
	if up.Dropped(vswitch.Down) == 0 || up.Err() != nil {
		t.Errorf("%+v", up.Stats())
	}
	if err := middle.nl.LinkSetUp(middle.link("lan0")); err != nil {
		t.Fatal(err)
	}
	tcp(t, guest, outside, 1<<20)
	if err := middle.nl.LinkDel(middle.link("lan0")); err != nil {
		t.Fatal(err)
	}
	waitEnded(t, up)
	// Reported by its receiver or by a sender.
	if !errors.Is(up.Err(), unix.ENETDOWN) && !errors.Is(up.Err(), unix.ENXIO) {
		t.Errorf("the port ended with %v", up.Err())
	}
	if _, err := vswitch.OpenPacket(middle.ns.Path(), "lan0"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("no such device: %v", err)
	}
}

// TestLivePacketDeviceRemovedWhenDown removes a device that is down. The kernel tells the socket
// only that a device goes down.
func TestLivePacketDeviceRemovedWhenDown(t *testing.T) {
	sw := newSwitch(t)
	outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
	for i, pause := range []time.Duration{0, 100 * time.Millisecond, 1500 * time.Millisecond} {
		veth(t, outside, middle, "lan0", 1500)
		up := addPort(t, sw, fmt.Sprint("up", i), openPacket(t, middle, "lan0"), vport.Config{})
		if err := middle.nl.LinkSetDown(middle.link("lan0")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause) // not a wait: the device stays down for this long
		if up.Err() != nil {
			t.Errorf("the port ended when the device went down: %v", up.Err())
		}
		if err := middle.nl.LinkDel(middle.link("lan0")); err != nil {
			t.Fatal(err)
		}
		waitEnded(t, up)
		if !errors.Is(up.Err(), unix.ENETDOWN) {
			t.Errorf("the port ended with %v", up.Err())
		}
		// The claim is gone with the device: the next device of that name is another one.
	}
}

// TestLivePacketDeviceRenamed checks that the switch does not keep using a renamed device, whose
// frames reach the host.
func TestLivePacketDeviceRenamed(t *testing.T) {
	sw := newSwitch(t)
	outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
	veth(t, outside, middle, "lan0", 1500)
	outside.up(1500)
	middle.up(1500)
	up := addPort(t, sw, "up", openPacket(t, middle, "lan0"), vport.Config{})
	guest := tapHost(t, sw, 0, 1, vport.Config{})
	if err := ping(t, outside, middle.v4, 0); err == nil {
		t.Error("the host answers")
	}
	if err := middle.nl.LinkSetName(middle.link("lan0"), "wan0"); err != nil {
		t.Fatal(err)
	}
	waitEnded(t, up)
	if up.Err() == nil || !strings.Contains(up.Err().Error(), "renamed to wan0") {
		t.Errorf("the port ended with %v", up.Err())
	}
	_ = ping(t, guest, outside.v4, 0) // an unknown destination, flooded to the port
	if up.Dropped(vswitch.Gone) == 0 {
		t.Errorf("frames that should leave by it: %+v", up.Stats())
	}

	// Neither the name nor the device is claimed any more.
	again := addPort(t, sw, "again", openPacket(t, middle, "wan0"), vport.Config{})
	if err := ping(t, outside, middle.v4, 0); err == nil {
		t.Error("the host answers by the device with its new name")
	}
	if again.Err() != nil {
		t.Error(again.Err())
	}
	veth(t, newHost(t, 3, "lan0"), middle, "lan0", 1500)
	addPort(t, sw, "other", openPacket(t, middle, "lan0"), vport.Config{})
}

// TestLivePacketByAltname checks that the claim is on the device itself.
func TestLivePacketByAltname(t *testing.T) {
	sw := newSwitch(t)
	outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
	veth(t, outside, middle, "lan0", 1500)
	outside.up(1500)
	middle.up(1500)
	if err := ping(t, outside, middle.v4, 0); err != nil {
		t.Fatal(err)
	}
	if err := middle.nl.LinkAddAltName(middle.link("lan0"), "the-way-out"); err != nil {
		t.Fatal(err)
	}
	addPort(t, sw, "up", openPacket(t, middle, "the-way-out"), vport.Config{})
	if err := ping(t, outside, middle.v4, 0); err == nil {
		t.Error("the host answers")
	}
	if _, err := vswitch.OpenPacket(middle.ns.Path(), "lan0"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("claimed twice: %v", err)
	}
}

// TestLivePacketDeviceRemovedBefore removes the device after its files were opened and before its
// port is added.
func TestLivePacketDeviceRemovedBefore(t *testing.T) {
	outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
	veth(t, outside, middle, "lan0", 1500)
	files, err := vswitch.PacketFiles(middle.ns.Path(), "lan0")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		defer f.Close()
	}
	if err := middle.nl.LinkDel(middle.link("lan0")); err != nil {
		t.Fatal(err)
	}
	if w, err := vswitch.OpenPacketFiles(files); !errors.Is(err, unix.ENODEV) {
		t.Errorf("%v, %v", w, err)
	}
}
