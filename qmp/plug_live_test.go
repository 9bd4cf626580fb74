package qmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
	"vmnet/step"
)

func TestLivePlug(t *testing.T) {
	ns := nstest.New(t)
	for _, tc := range []struct {
		queues int
		model  string
	}{{1, ""}, {4, ""}, {1, "e1000e"}, {1, "rtl8139"}} {
		t.Run(fmt.Sprintf("%d queues %s", tc.queues, tc.model), func(t *testing.T) {
			c := startQEMU(t, "pc").dial(t)
			ctx := within(t, 30*time.Second)
			queues := newTap(t, ns, "vq0", tc.queues)
			mac, _ := net.ParseMAC("52:54:00:aa:bb:cc")
			port, err := c.FreePort(ctx)
			if err != nil {
				t.Fatal(err)
			}
			n := NIC{ID: "vmnet-net0", Queues: tc.queues, Model: tc.model, MAC: mac, Bus: port.Bus, Addr: port.Addr}
			if n.virtio() {
				n.HostMTU = 1400
			}
			if err := c.Plug(ctx, n, &Files{Queues: queues}); err != nil {
				t.Fatal(err)
			}
			closeAll(queues)
			if has, err := c.HasDevice(ctx, n.ID); !has || err != nil {
				t.Errorf("HasDevice: %v, %v", has, err)
			}
			want := map[string]any{"mac": "52:54:00:aa:bb:cc"}
			if n.virtio() {
				want["host_mtu"], want["mq"] = 1400.0, tc.queues > 1
			}
			if tc.queues == 4 {
				want["vectors"] = 10.0
			}
			for property, value := range want {
				if got, err := qomValue(ctx, c, n.ID, property); got != value || err != nil {
					t.Errorf("%s is %v (%v), want %v", property, got, err, value)
				}
			}
			if text := netdevs(t, c); strings.Count(text, "type=tap") != tc.queues {
				t.Errorf("want %d tap queues:\n%s", tc.queues, text)
			}
			// All fds went into the netdev: none is left by name.
			if err := c.Rollback(ctx, n.ID, tc.queues); err != nil {
				t.Error(err)
			}
			wantGone(t, ns, "vq0")
		})
	}
}

// Nothing is left of a plug that fails: no netdev, and no fd by name, or the
// link would live.
func TestLivePlugFailsCleanly(t *testing.T) {
	ns := nstest.New(t)
	c := startQEMU(t, "pc").dial(t)
	ctx := within(t, 60*time.Second)
	for name, tc := range map[string]struct {
		edit func(*NIC)
		text string
	}{
		"unknown property": {func(n *NIC) { n.Options = map[string]string{"colour": "red"} }, "colour"},
		"bad value":        {func(n *NIC) { n.Options = map[string]string{"mrg_rxbuf": "perhaps"} }, "mrg_rxbuf"},
		"impossible value": {func(n *NIC) { n.Options = map[string]string{"rx_queue_size": "500"} }, "rx_queue_size"},
		"unknown model":    {func(n *NIC) { n.Model = "virtio-net-turbo" }, "virtio-net-turbo"},
		"unknown bus":      {func(n *NIC) { n.Bus = "port77" }, "port77"},
	} {
		t.Run(name, func(t *testing.T) {
			queues := newTap(t, ns, "vf0", 2)
			n := NIC{ID: "n", Queues: 2}
			tc.edit(&n)
			err := c.Plug(ctx, n, &Files{Queues: queues})
			closeAll(queues)
			if err == nil || !strings.Contains(err.Error(), tc.text) || strings.Contains(err.Error(), "undo") {
				t.Errorf("got %v, want only a complaint about %q", err, tc.text)
			}
			wantGone(t, ns, "vf0")
			if text := netdevs(t, c); strings.Contains(text, "tap") {
				t.Errorf("a netdev is left: %s", text)
			}
		})
	}
}

func TestLivePlugOfATakenID(t *testing.T) {
	ns := nstest.New(t)
	c := startQEMU(t, "pc").dial(t)
	ctx := within(t, 30*time.Second)
	if err := c.Plug(ctx, NIC{ID: "n", Queues: 1}, &Files{Queues: newTap(t, ns, "first", 1)}); err != nil {
		t.Fatal(err)
	}
	second := newTap(t, ns, "second", 1)
	// The device's id is free, the netdev's is not.
	err := c.Plug(ctx, NIC{ID: "m", Netdev: "n-netdev", Queues: 1}, &Files{Queues: second})
	if !isDuplicate(err) {
		t.Errorf("taken netdev: %v", err)
	}
	closeAll(second)
	wantGone(t, ns, "second")
	if text := netdevs(t, c); !strings.Contains(text, "n-netdev") {
		t.Errorf("the first NIC lost its netdev: %q", text)
	}
}

// A step after device_add fails while the guest is paused: the tap goes, the
// device stays, and the error says so.
func TestLiveUndoOfAPluggedDevice(t *testing.T) {
	ns := nstest.New(t)
	c := startQEMU(t, "pc").dial(t)
	queues := newTap(t, ns, "vu0", 1)
	fault := errors.New("fault")
	steps := append(c.PlugSteps(NIC{ID: "n", Queues: 1}, &Files{Queues: queues}),
		step.Step{Name: "verify", Do: func(context.Context) error {
			return fault
		}})
	err := step.Run(within(t, 30*time.Second), steps, nil)
	closeAll(queues)
	if !errors.Is(err, fault) || !errors.Is(err, ErrUnplugTimeout) ||
		!strings.Contains(err.Error(), "keeps an empty device n") {
		t.Errorf("got %v", err)
	}
	wantGone(t, ns, "vu0")
}

func TestLiveOptions(t *testing.T) {
	ns := nstest.New(t)
	c := startQEMU(t, "pc").dial(t)
	ctx := within(t, 30*time.Second)
	n, err := c.TypeOptions(ctx, NIC{ID: "n", Queues: 1, Addr: "0x1a", Options: map[string]string{
		"rx_queue_size": "512", "mrg_rxbuf": "off", "speed": "10000", "duplex": "full",
		"disable-legacy": "on", "romfile": "",
	}})
	if err != nil {
		t.Fatal(err)
	}
	steps := c.PlugSteps(n, &Files{Queues: newTap(t, ns, "vo0", 1)})
	text := steps[len(steps)-1].Text
	for _, want := range []string{
		`"rx_queue_size":512`, `"mrg_rxbuf":false`, `"speed":10000`, `"duplex":"full"`,
		`"disable-legacy":"on"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	if err := step.Run(ctx, steps, nil); err != nil {
		t.Fatal(err)
	}
	for property, want := range map[string]any{
		"rx_queue_size": 512.0, "mrg_rxbuf": false, "speed": 10000.0,
		"duplex": "full", "addr": float64(0x1a << 3),
	} {
		if got, err := qomValue(ctx, c, "n", property); got != want || err != nil {
			t.Errorf("%s is %v (%v), want %v", property, got, err, want)
		}
	}
}

func TestLiveReleaseIsIdempotent(t *testing.T) {
	ns := nstest.New(t)
	c := startQEMU(t, "pc").dial(t)
	ctx := within(t, 30*time.Second)
	queues := newTap(t, ns, "vi0", 1)
	if err := c.GetFD(ctx, "held", queues[0]); err != nil {
		t.Fatal(err)
	}
	closeAll(queues)
	if !hasLink(t, ns, "vi0") {
		t.Fatal("the getfd name does not hold the tap")
	}
	for range 2 {
		if err := errors.Join(c.CloseFD(ctx, "held"), c.NetdevDel(ctx, "none"), c.Rollback(ctx, "none", 2),
			c.Unplug(ctx, "none", nil)); err != nil {
			t.Error(err)
		}
		wantGone(t, ns, "vi0")
	}
}

func TestLiveUnplugOfAPausedGuest(t *testing.T) {
	ns := nstest.New(t)
	c := startQEMU(t, "pc").dial(t)
	ctx := within(t, 30*time.Second)
	queues := newTap(t, ns, "vp0", 1)
	if err := c.Plug(ctx, NIC{ID: "n", Queues: 1}, &Files{Queues: queues}); err != nil {
		t.Fatal(err)
	}
	closeAll(queues)
	waits := 0
	err := c.Unplug(within(t, 2500*time.Millisecond), "n", func(time.Duration) { waits++ })
	if !errors.Is(err, ErrUnplugTimeout) || !errors.Is(err, context.DeadlineExceeded) || waits != 2 {
		t.Errorf("got %v after %d repeats", err, waits)
	}
	if has, err := c.HasDevice(ctx, "n"); !has || err != nil || !hasLink(t, ns, "vp0") {
		t.Errorf("the NIC should still work: device %v (%v)", has, err)
	}
	if err := c.NetdevDel(ctx, NetdevID("n")); err != nil {
		t.Error(err)
	}
	wantGone(t, ns, "vp0")

	// A reset completes all removals. The firmware alone then runs.
	events := c.Subscribe(16, "DEVICE_DELETED")
	defer events.Close()
	if err := errors.Join(c.Execute(ctx, "system_reset", nil, nil), c.Execute(ctx, "cont", nil, nil)); err != nil {
		t.Fatal(err)
	}
	if err := c.Unplug(ctx, "n", nil); err != nil {
		t.Error(err)
	}
	if has, err := c.HasDevice(ctx, "n"); has || err != nil {
		t.Errorf("after the reset: %v, %v", has, err)
	}
}

// What was sent to a QEMU that is stopped is run even though the sender has gone.
func TestLiveUndoReachesAStoppedQEMU(t *testing.T) {
	ns := nstest.New(t)
	q := startQEMU(t, "pc")
	c := q.dial(t)
	queues := newTap(t, ns, "vs0", 2)
	fault := errors.New("fault")
	steps := append(c.PlugSteps(NIC{ID: "n", Queues: 2}, &Files{Queues: queues})[:3],
		step.Step{Name: "stop", Do: func(context.Context) error {
			q.stop(t)
			return fault
		}})
	err := step.Run(t.Context(), steps, nil)
	if !errors.Is(err, fault) || !errors.Is(err, ErrUnanswered) {
		t.Errorf("got %v", err)
	}
	_ = c.Close()
	closeAll(queues)
	if !hasLink(t, ns, "vs0") {
		t.Fatal("a stopped QEMU has closed its tap")
	}
	q.signal(t, unix.SIGCONT)
	wantGone(t, ns, "vs0")

	// The monitor is free again, and nothing is left by name.
	c = q.dial(t)
	err = c.Execute(within(t, 20*time.Second), "closefd", fdName(holdName), nil)
	if err == nil || unlessGone(err) != nil {
		t.Errorf("the socket's own copy: %v", err)
	}
}

// The reason for leave: commands that QEMU has not read are lost with the connection.
func TestLiveHangUpDropsUnreadCommands(t *testing.T) {
	q := startQEMU(t, "pc")
	c := q.dial(t)
	q.stop(t)
	if err := c.NetdevAdd(within(t, 50*time.Millisecond),
		map[string]any{"type": "hubport", "id": "h", "hubid": 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	_ = c.Close()
	q.signal(t, unix.SIGCONT)
	if text := netdevs(t, q.dial(t)); strings.Contains(text, "hub") {
		t.Errorf("QEMU ran it: %s", text)
	}
}
