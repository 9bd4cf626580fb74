package tapmgr_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"vmnet/internal/rundir"
	"vmnet/libvirt/libvirttest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveSwitchOfLibvirtsGuest: libvirt has no words for a port of a userspace switch, its monitor
// commands do.
func TestLiveSwitchOfLibvirtsGuest(t *testing.T) {
	libvirttest.Require(t)
	h := newLibvirtHost(t)
	s := h.runSwitch()
	s.behind()
	g := h.domain(testvm.Domain{Machine: "q35"})
	spec := h.spec(g, "net0")
	spec.Bridge, spec.Switch = "", &nic.Switch{Name: s.path}
	ctx := h.context(60 * time.Second)
	if _, err := h.Attach(ctx, spec); !errors.Is(err, nic.ErrInvalid) ||
		!strings.Contains(err.Error(), "--via monitor") {
		t.Errorf("without --via monitor: %v", err)
	}
	spec.Via, spec.Switch.By = nic.ViaMonitor, nic.ByVhostUser
	if _, err := h.Attach(ctx, spec); !errors.Is(err, nic.ErrHandover) ||
		!strings.Contains(err.Error(), "<access mode='shared'/>") {
		t.Errorf("by the guest's private memory: %v", err)
	}
	for _, by := range bothBys {
		spec.Switch.By = by
		found := h.attach(spec)
		if found.Via != nic.ViaMonitor || found.Type != string(by) || found.State != "forwarding" {
			t.Errorf("%s: %+v", by, found)
		}
		h.useNIC(g, found, guestA, behindTap)
		if diff := h.check(); len(diff) != 0 {
			t.Errorf("%s: check %+v", by, diff)
		}
		if res, err := h.Attach(ctx, spec); err != nil || res.Changed {
			t.Errorf("%s: the same again: %+v, %v", by, res, err)
		}
		h.take(g, "net0")
		if ports := s.ports(); len(ports) != 1 {
			t.Errorf("%s: ports %+v: want that of the host alone", by, ports)
		}
	}
}

// TestLiveSwitchOfLibvirtsGuestAsAnotherUser: libvirt runs QEMU as a user of its own, and the
// guest's name is all that it takes.
func TestLiveSwitchOfLibvirtsGuestAsAnotherUser(t *testing.T) {
	libvirttest.Require(t)
	t.Parallel()
	h := &libvirtHost{host: newHost(t)}
	h.virt = libvirttest.StartPermissive(t, h.ns)
	h.Libvirt = h.virt.URI()
	s := h.runSwitch()
	g := h.domain(testvm.Domain{
		Machine: "q35", Attributes: "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'",
		Extra: "<qemu:commandline><qemu:arg value='-runas'/><qemu:arg value='daemon'/></qemu:commandline>",
	})
	spec := h.spec(g, "net0")
	spec.Bridge, spec.Via = "", nic.ViaMonitor
	for _, by := range bothBys {
		spec.Switch = &nic.Switch{Name: s.path, By: by}
		h.attach(spec)
		if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || res.Changed {
			t.Errorf("%s: the same again: %+v, %v", by, res, err)
		}
		if diff := h.check(); len(diff) != 0 {
			t.Errorf("%s: check %+v", by, diff)
		}
		h.take(g, "net0")
		if ports := s.ports(); len(ports) != 0 {
			t.Errorf("%s: ports %+v", by, ports)
		}
	}
}

// sharedDomain has libvirt start a guest whose memory a switch can map.
const sharedDomain = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"

// TestLiveSharedMemoryOfLibvirtsGuest plugs a NIC by vhost-user into a libvirt guest, whose switch
// is killed and comes back.
func TestLiveSharedMemoryOfLibvirtsGuest(t *testing.T) {
	libvirttest.Require(t)
	t.Parallel()
	h := &libvirtHost{host: newHost(t)}
	h.sharesRun()
	if _, err := rundir.Make([]string{rundir.System}, 0); err != nil { // before libvirtd sees /run
		t.Fatal(err)
	}
	h.virt = libvirttest.Start(t, h.ns)
	h.Libvirt = h.virt.URI()
	s := h.runSwitch()
	g := h.domain(testvm.Domain{Machine: "q35", Extra: sharedDomain})
	spec := h.spec(g, "net0")
	spec.Bridge, spec.Switch = "", &nic.Switch{Name: s.path, By: nic.ByVhostUser}
	spec.Via = nic.ViaMonitor
	s.behind()
	found := h.attach(spec)
	if found.Via != nic.ViaMonitor || found.Type != nic.TypeVhostUser {
		t.Errorf("%+v", found)
	}
	h.useNIC(g, found, guestA, behindTap)
	if list, err := h.List(g.Name); err != nil || len(list) != 1 || list[0].State != "forwarding" {
		t.Errorf("list %+v, %v", list, err)
	}
	if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	if diff := h.check(); len(diff) != 0 {
		t.Errorf("check %+v", diff)
	}
	s.kill()
	s.start()
	s.asksAgain()
	h.Libvirt = h.virt.URI()
	h.settled()
	s.behind()
	h.useNIC(g, found, guestA, behindTap)
	h.take(g, "net0")
	if ports := s.ports(); len(ports) != 1 {
		t.Errorf("ports %+v: want that of the host alone", ports)
	}
}
