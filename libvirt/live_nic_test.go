package libvirt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/procfd"
)

func (l *live) monitor(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	reply, err := c.MonitorCommand(ctx, dom, `{"execute":"query-name"}`)
	if err != nil || !strings.Contains(reply, `"name":"standing"`) {
		t.Errorf("%s, %v", reply, err)
	}
	reply, received, err := c.MonitorCommandWithFiles(ctx, dom, `{"execute":"query-status"}`)
	if err != nil || len(received) != 0 || !strings.Contains(reply, `"running":false`) {
		t.Errorf("%s, %v, %v", reply, received, err)
	}
	reply, err = c.MonitorCommand(ctx, dom, `{"execute":"no-such-command"}`)
	if err != nil || !strings.Contains(reply, `"error"`) {
		t.Errorf("%s, %v", reply, err)
	}
}

// files passes a pipe's end to QEMU and finds it there.
func (l *live) files(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	before, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	reply, received, err := c.MonitorCommandWithFiles(ctx, dom, `{"execute":"getfd","arguments":{"fdname":"vmnet-test"}}`, w)
	if err != nil || len(received) != 0 || !strings.Contains(reply, `"return":{}`) {
		t.Fatalf("%s, %v, %v", reply, received, err)
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if n := held(l.daemon.QEMU("standing"), link); n != 1 {
		t.Errorf("QEMU holds %s %d times", link, n)
	}
	if n := held(l.daemon.PID(), link); n != 0 {
		t.Errorf("libvirtd holds %s %d times", link, n)
	}
	if flags, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != before&unix.O_NONBLOCK {
		t.Errorf("flags %#x, before %#x, %v", flags, before, err)
	}
	_ = w.Close()
	if _, err := c.MonitorCommand(ctx, dom, `{"execute":"closefd","arguments":{"fdname":"vmnet-test"}}`); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil { // ends only if nobody else holds the other end
		t.Error(err)
	}
	// QEMU takes one file with a command; libvirt refuses more, and the connection goes on.
	if _, _, err := c.MonitorCommandWithFiles(ctx, dom, `{"execute":"query-name"}`, r, r); err == nil {
		t.Error("two files were taken")
	}
	if _, err := c.MonitorCommand(ctx, dom, `{"execute":"query-name"}`); err != nil {
		t.Error(err)
	}
}

func held(pid int, target string) (n int) {
	procfd.Of(pid, func(f procfd.File) {
		if f.Target == target {
			n++
		}
	})
	return n
}

func liveNIC(t *testing.T) string {
	t.Helper()
	text, err := Ethernet{Tap: liveTap, MAC: []byte{2, 0, 0, 0, 0, 1}, MTU: 1400, Alias: "ua-vmnet-net0"}.XML()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (l *live) interfaces(t *testing.T, c *Conn, dom Domain) []Interface {
	t.Helper()
	def := l.definition(t, c, dom, 0)
	if def.ID < 1 {
		t.Errorf("id %d", def.ID)
	}
	return def.Interfaces
}

func (l *live) definition(t *testing.T, c *Conn, dom Domain, flags XMLFlags) *Definition {
	t.Helper()
	text, err := c.XML(within(t, 20*time.Second), dom, flags)
	if err != nil {
		t.Fatal(err)
	}
	def, err := ParseDefinition(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return def
}

func (l *live) nic(t *testing.T) {
	c, dom := l.dial(t)
	other, _ := l.dial(t)
	ctx := within(t, 60*time.Second)
	s, err := other.Subscribe(ctx, &dom, 16, DeviceAdded, DeviceRemoved, DeviceRemovalFailed)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	isOurs := func(e Event) bool { return e.Device == "ua-vmnet-net0" }
	for _, detach := range []func() error{
		func() error { return c.DetachDeviceAlias(ctx, dom, "ua-vmnet-net0", AffectLive) },
		func() error { return c.DetachDevice(ctx, dom, liveNIC(t), AffectLive) },
	} {
		if err := c.AttachDevice(ctx, dom, liveNIC(t), AffectLive); err != nil {
			t.Fatal(err)
		}
		if e := receive(t, s, isOurs); e.Kind != DeviceAdded {
			t.Errorf("%+v", e)
		}
		nics := l.interfaces(t, c, dom)
		if len(nics) != 1 || nics[0].Type != "ethernet" || nics[0].Target != liveTap || !nics[0].Unmanaged || nics[0].MTU != 1400 ||
			nics[0].Alias != "ua-vmnet-net0" || nics[0].Model != "virtio" || nics[0].MAC.String() != "02:00:00:00:00:01" || !strings.HasPrefix(nics[0].Address, "0000:0") {
			t.Errorf("%+v", nics)
		}
		if stats, err := c.InterfaceStats(ctx, dom, liveTap); err != nil || stats.RxDropped < 0 {
			t.Errorf("%+v, %v", stats, err)
		}
		if all, err := c.InterfaceAddresses(ctx, dom, FromLeases); err != nil || len(all) != 0 {
			t.Errorf("%+v, %v", all, err)
		}
		if err := c.UpdateDevice(ctx, dom, strings.Replace(liveNIC(t), "<alias", "<link state='down'></link><alias", 1), AffectLive); err != nil {
			t.Errorf("update: %v", err)
		}
		if err := detach(); err != nil {
			t.Fatal(err)
		}
		if e := receive(t, s, isOurs); e.Kind != DeviceRemoved {
			t.Errorf("%+v", e)
		}
		if nics := l.interfaces(t, c, dom); len(nics) != 0 {
			t.Errorf("left: %+v", nics)
		}
	}
	if err := c.DetachDevice(ctx, dom, liveNIC(t), AffectLive); !errors.Is(err, ErrDeviceMissing) {
		t.Errorf("detach again: %v", err)
	}
	var refusal *Error
	if err := c.DetachDeviceAlias(ctx, dom, "ua-vmnet-net0", AffectLive); !errors.As(err, &refusal) {
		t.Errorf("detach again: %v", err)
	}
}

// queues must be as the tap is.
func (l *live) queues(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 60*time.Second)
	for _, test := range []struct {
		tap    string
		queues int
		ok     bool
	}{{liveTap, 2, false}, {liveMultiTap, 1, false}, {liveMultiTap, 2, true}} {
		x, err := Ethernet{Tap: test.tap, MAC: []byte{2, 0, 0, 0, 0, 2}, Queues: test.queues, Alias: "ua-vmnet-net1"}.XML()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AttachDevice(ctx, dom, x, AffectLive); (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		} else {
			t.Logf("%+v: %v", test, err)
		}
	}
	nics := l.interfaces(t, c, dom)
	if len(nics) != 1 || nics[0].Queues != 2 || nics[0].Target != liveMultiTap || nics[0].Alias != "ua-vmnet-net1" {
		t.Errorf("%+v", nics)
	}
	link := "/dev/net/tun"
	if n := held(l.daemon.QEMU("standing"), link); n != 2 {
		t.Errorf("QEMU holds %d queues", n)
	}
}
