package guest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/libvirt/libvirttest"
	"vmnet/qmp"
	"vmnet/testvm"
)

// relayed is a libvirt guest whose monitor is reached through libvirt.
type relayed struct {
	*testing.T
	ns   *netns.NS
	virt *libvirttest.Daemon
	g    *libvirttest.Guest
}

func (r *relayed) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(r.Context(), d)
	r.Cleanup(cancel)
	return ctx
}

// dial makes a connection to the daemon, and one to the monitor through it.
func (r *relayed) dial() (*libvirt.Conn, *qmp.Conn) {
	r.Helper()
	c, err := libvirt.Dial(r.within(20*time.Second), r.virt.URI())
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = c.Close() })
	dom, err := c.LookupByName(r.within(20*time.Second), r.g.Name)
	if err != nil {
		r.Fatal(err)
	}
	conn, err := dialThroughLibvirt(r.within(20*time.Second), c, dom)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = conn.Close() })
	return c, conn
}

// nic is a NIC with two queues of a new tap, for a free port.
func (r *relayed) nic(c *qmp.Conn, id, tap string) (n qmp.NIC, f *qmp.Files, close func()) {
	r.Helper()
	t, err := tun.Create(r.ns, tap, true)
	if err == nil {
		err = t.AddQueue()
	}
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = t.Close() })
	port, err := c.FreePort(r.within(20 * time.Second))
	if err != nil {
		r.Fatal(err)
	}
	return qmp.NIC{
		ID: id, Queues: 2, MAC: []byte{0x52, 0x54, 0, 0, 1, 1}, Bus: port.Bus, Addr: port.Addr,
		Options: map[string]string{"rx_queue_size": "512"},
	}, &qmp.Files{Queues: t.Queues()}, func() { _ = t.Close() }
}

// wantGone fails unless the tap goes, which nobody holds then.
func (r *relayed) wantGone(tap string) {
	r.Helper()
	nl := nstest.Handle(r, r.ns)
	nstest.Eventually(r, 20*time.Second, tap+" is gone", func() bool {
		links, err := nl.LinkList()
		if err != nil {
			r.Fatal(err)
		}
		return !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == tap })
	})
}

// held are the taps that QEMU holds, one for each queue.
func (r *relayed) held() (taps []string) {
	procfd.Of(r.g.QEMU(), func(f procfd.File) {
		if tun.LooksLikeQueue(f) {
			taps = append(taps, tun.InterfaceOf(f))
		}
	})
	return taps
}

func (r *relayed) signal(pid int, s syscall.Signal) {
	r.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		r.Fatal(err)
	}
}

// TestLiveRelay shares one daemon and one guest: they start slowly.
func TestLiveRelay(t *testing.T) {
	t.Parallel()
	libvirttest.Require(t)
	ns := nstest.New(t)
	virt := libvirttest.Start(t, ns)
	g := virt.NewGuest(t, testvm.Domain{Name: "relayed", CPUs: 2})
	g.Boot()
	for _, test := range []struct {
		name string
		run  func(*relayed)
	}{
		{"plug", (*relayed).plug},
		{"refusals", (*relayed).refusals},
		{"a foreign client", (*relayed).foreignClient},
		{"fault at every step", (*relayed).faults},
		{"QEMU is paused", (*relayed).qemuStops},
		{"libvirtd is paused", (*relayed).libvirtdStops},
		{"libvirtd is restarted", (*relayed).libvirtdRestarts},
		{"destroyed", (*relayed).destroyed},
		{"killed", (*relayed).killed},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(&relayed{t, ns, virt, g}) }) {
			t.Logf("libvirtd said:\n%s", virt.Log())
			return
		}
	}
}

// plug plugs a NIC into the guest and unplugs it again.
func (r *relayed) plug() {
	_, c := r.dial()
	ctx := r.within(60 * time.Second)
	if major, _, _ := c.Version(); major < 5 || c.Peer() != (qmp.Peer{}) {
		r.Errorf("version %d, peer %+v", major, c.Peer())
	}
	if name, err := c.Name(ctx); name != r.g.Name || err != nil {
		r.Errorf("name %q, %v", name, err)
	}
	if n, err := c.CPUs(ctx); n != 2 || err != nil {
		r.Errorf("%d CPUs, %v", n, err)
	}
	events := c.Subscribe(64)
	defer events.Close()
	n, files, closeTap := r.nic(c, "vmnet-net0", "vr0")
	if err := c.Plug(ctx, n, files); err != nil {
		r.Fatal(err)
	}
	closeTap()
	if got := r.held(); len(got) != 2 || got[0] != "vr0" || got[1] != "vr0" {
		r.Errorf("QEMU holds %q", got)
	}
	if _, err := r.g.WaitNIC(ctx, n.MAC.String()); err != nil {
		r.Error(err)
	}
	if f, err := c.RxFilter(ctx, n.ID); err != nil || f.MainMAC != n.MAC.String() {
		r.Errorf("%+v, %v", f, err)
	}
	if err := r.g.UseNIC(ctx, n.MAC.String(), "192.0.2.1/24"); err != nil {
		r.Error(err)
	}
	if has, err := c.HasDevice(ctx, n.ID); !has || err != nil {
		r.Errorf("plugged %v, %v", has, err)
	}
	if err := c.Unplug(ctx, n.ID, nil); err != nil {
		r.Fatal(err)
	}
	r.wantGone("vr0")
	if err := c.Unplug(ctx, n.ID, nil); err != nil { // what is gone is success
		r.Error(err)
	}
	r.wantEvents(events, n.ID)
}

// wantEvents expects the events of a NIC that was plugged and unplugged.
func (r *relayed) wantEvents(s *qmp.Subscription, id string) {
	r.Helper()
	missing := map[string]bool{"DEVICE_DELETED": true, "NIC_RX_FILTER_CHANGED": true}
	for len(missing) > 0 {
		select {
		case e := <-s.C:
			var data struct{ Device, Name string }
			if json.Unmarshal(e.Data, &data) == nil && (data.Device == id || data.Name == id) &&
				time.Since(e.Time).Abs() < time.Minute {
				delete(missing, e.Name)
			}
		case <-time.After(10 * time.Second):
			r.Fatalf("no events %v", missing)
		}
	}
}

// refusals are QEMU's own, in its own words.
func (r *relayed) refusals() {
	_, c := r.dial()
	ctx := r.within(60 * time.Second)
	var refused *qmp.Error
	if err := c.Execute(ctx, "no-such-command", nil, nil); !errors.As(err, &refused) ||
		refused.Class != "CommandNotFound" {
		r.Errorf("%v", err)
	}
	n, files, closeTap := r.nic(c, "vmnet-net0", "vr0")
	n.Options = map[string]string{"no_such_option": "on"}
	if err := c.Plug(ctx, n, files); !errors.As(err, &refused) || refused.Command != "device_add" ||
		strings.Contains(err.Error(), "undo") {
		r.Errorf("%v", err)
	}
	closeTap()
	r.wantGone("vr0")
	if err := c.NetdevDel(ctx, "none"); err != nil {
		r.Error(err)
	}
	if err := c.CloseFD(ctx, "none"); err != nil {
		r.Error(err)
	}
	if err := c.Rollback(ctx, "vmnet-net0", 2); err != nil {
		r.Error(err)
	}
	if c.Err() != nil {
		r.Error(c.Err())
	}
}

// TestLiveRelayBesideLibvirt: libvirt does not want a place that one of ours has, of which it does
// not know.
func TestLiveRelayBesideLibvirt(t *testing.T) {
	t.Parallel()
	libvirttest.Require(t)
	ns := nstest.New(t)
	virt := libvirttest.Start(t, ns)
	for _, machine := range []string{"pc", "q35"} {
		r := &relayed{t, ns, virt, virt.NewGuest(t, testvm.Domain{Name: "beside-" + machine, Machine: machine})}
		r.g.Start()
		conn, c := r.dial()
		n, files, closeTap := r.nic(c, "vmnet-net0", "vr0")
		if err := c.Plug(r.within(60*time.Second), n, files); err != nil {
			t.Fatal(err)
		}
		closeTap()
		tap, err := tun.Create(ns, "vr1", false)
		if err != nil {
			t.Fatal(err)
		}
		defer tap.Close()
		if err := tap.Persist(0); err != nil {
			t.Fatal(err)
		}
		_ = tap.Close() // a single queue is libvirt's or ours
		text, err := domainxml.Ethernet{
			Tap: "vr1", MAC: []byte{0x52, 0x54, 0, 0, 1, 2},
			Alias: domainxml.Alias("net1"),
		}.XML()
		if err != nil {
			t.Fatal(err)
		}
		dom, err := conn.LookupByName(r.within(20*time.Second), r.g.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.AttachDevice(r.within(20*time.Second), dom, text, libvirt.AffectLive); err != nil {
			t.Errorf("%s: %v", machine, err)
		}
		virt.Virsh("destroy", r.g.Name)
		r.wantGone("vr0")
		links := nstest.Handle(t, ns)
		l, err := links.LinkByName("vr1")
		if err == nil {
			err = links.LinkDel(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
