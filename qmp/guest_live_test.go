package qmp

import (
	"context"
	"errors"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// plugInto plugs a NIC with one tap into the machine, whose link then lives as
// long as QEMU holds it.
func plugInto(t *testing.T, c testvm.Config) (conn *Conn, gone func()) {
	t.Helper()
	ns := nstest.New(t)
	vm := testvm.StartT(t, c)
	conn = dialT(t, vm.QMP)
	ctx := within(t, 60*time.Second)
	port, err := conn.FreePort(ctx)
	if err != nil {
		t.Fatal(err)
	}
	queues := newTap(t, ns, "vg0", 1)
	if err := conn.Plug(ctx, NIC{ID: "n", Queues: 1, Bus: port.Bus, Addr: port.Addr},
		&Files{Queues: queues}); err != nil {
		t.Fatal(err)
	}
	closeAll(queues)
	if !c.NoWait {
		var mac string
		if mac, err = macOf(ctx, conn); err == nil {
			_, err = vm.Guest.WaitNIC(ctx, mac)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return conn, func() { t.Helper(); wantGone(t, ns, "vg0") }
}

func macOf(ctx context.Context, c *Conn) (string, error) {
	f, err := c.RxFilter(ctx, "n")
	return f.MainMAC, err
}

func TestLiveUnplugFromAGuest(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config testvm.Config
	}{
		{"pc", testvm.Config{}},
		{"q35", testvm.Config{Machine: "q35", SparePorts: 2}},
		{
			"q35 native",
			testvm.Config{
				Machine:    "q35",
				SparePorts: 2, ExtraArgs: []string{"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, gone := plugInto(t, tc.config)
			start := time.Now()
			if err := c.Unplug(within(t, 60*time.Second), "n", func(d time.Duration) {
				t.Logf("waits since %s", d.Round(time.Millisecond))
			}); err != nil {
				t.Fatal(err)
			}
			t.Logf("unplugged after %s", time.Since(start).Round(time.Millisecond))
			gone()
			if has, err := c.HasDevice(within(t, 20*time.Second), "n"); has || err != nil {
				t.Errorf("HasDevice: %v, %v", has, err)
			}
		})
	}
}

// The guest's firmware swallows the first requests; a later one gets through.
func TestLiveUnplugFromABootingGuest(t *testing.T) {
	for _, machine := range []testvm.Config{
		{Machine: "pc", NoWait: true},
		{Machine: "q35", SparePorts: 1, NoWait: true},
	} {
		t.Run(machine.Machine, func(t *testing.T) {
			c, gone := plugInto(t, machine)
			waits := 0
			if err := c.Unplug(within(t, 90*time.Second), "n", func(time.Duration) { waits++ }); err != nil {
				t.Fatal(err)
			}
			if waits == 0 {
				t.Error("the guest answered the first request: it was not booting")
			}
			gone()
		})
	}
}

func TestLiveUnplugFromAGuestWithoutACPI(t *testing.T) {
	c, gone := plugInto(t, testvm.Config{NoWait: true, KernelArgs: []string{"acpi=off"}})
	err := c.Unplug(within(t, 15*time.Second), "n", nil)
	if !errors.Is(err, ErrUnplugTimeout) {
		t.Fatalf("got %v", err)
	}
	if err := c.NetdevDel(within(t, 20*time.Second), NetdevID("n")); err != nil {
		t.Error(err)
	}
	gone()
}
