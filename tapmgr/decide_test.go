package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/backend"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/libvirt"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// TestWayOf: a libvirt guest gets its NIC through libvirt unless asked otherwise, and only such a
// guest can be asked for.
func TestWayOf(t *testing.T) {
	plain := nic.Spec{Target: nic.Target{VM: "P2"}, NIC: "net0", Bridge: "br0"}.WithDefaults()
	byMonitor, byLibvirt, persistent, onSwitch, options := plain, plain, plain, plain, plain
	byMonitor.Via, byLibvirt.Via, persistent.Persistent = nic.ViaMonitor, nic.ViaLibvirt, true
	onSwitch.Bridge, onSwitch.Switch = "", &nic.Switch{Name: "sw0"}
	options.DeviceOptions = map[string]string{"rx_queue_size": "1024"}
	for name, tc := range map[string]struct {
		spec       nic.Spec
		isLibvirts bool
		hasHelper  bool
		want       nic.Via
		err        error
	}{
		"a guest":                           {plain, false, false, "", nil},
		"a guest, with a helper":            {plain, false, true, "", nil},
		"a guest, by libvirt":               {byLibvirt, false, false, "", nic.ErrInvalid},
		"a guest, by libvirt's monitor":     {byMonitor, false, false, "", nic.ErrInvalid},
		"a guest, stored by libvirt":        {persistent, false, false, "", nic.ErrInvalid},
		"libvirt's":                         {plain, true, false, nic.ViaLibvirt, nil},
		"libvirt's, by its monitor":         {byMonitor, true, false, nic.ViaMonitor, nil},
		"libvirt's, by monitor and helper":  {byMonitor, true, true, nic.ViaMonitor, nil},
		"libvirt's, with a helper":          {plain, true, true, "", nic.ErrLink},
		"libvirt's, on a switch":            {onSwitch, true, false, "", nic.ErrInvalid},
		"libvirt's, what its XML cannot be": {options, true, false, "", nic.ErrInvalid},
	} {
		got, err := wayOf(tc.spec, tc.isLibvirts, tc.hasHelper)
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, err, tc.want, tc.err)
		}
	}
}

// tapOn is a tap of guest P2 on br0 that its process 7 holds.
func tapOn(change func(*inventory.Device)) *inventory.Device {
	dev := &inventory.Device{
		Link: &rtnl.Link{Name: "P2-net0", Index: 5, Tun: &rtnl.Tun{Tap: true, Attached: true}},
		Want: nic.Record{
			VM: "P2", NIC: "net0", Type: nic.TypeTap, Source: "br0", Model: nic.DefaultModel, Queues: 1,
			Phase: nic.PhasePlugged,
		},
		MasterName: "br0",
		Holders:    []nic.Holder{{PID: 7, FDs: []int{9}}},
	}
	if change != nil {
		change(dev)
	}
	return dev
}

// onSocket is a NIC of that guest on a socket to a switch.
func onSocket(change func(*inventory.Device)) *inventory.Device {
	r := tapOn(nil).Want
	r.Type, r.Source, r.Switch = nic.TypeSocket, "sw0", true
	dev := inventory.SocketNIC(r, 0)
	dev.Holders = []nic.Holder{{PID: 7}}
	dev.SwitchPort = inventory.SwitchPort{Path: "/sw0", Port: &control.Port{Name: "P2-net0", Holder: 7}}
	if change != nil {
		change(&dev)
	}
	return &dev
}

// TestJudge: what an attach does about a NIC of the same id.
func TestJudge(t *testing.T) {
	requested := nic.Spec{Target: nic.Target{VM: "P2"}, NIC: "net0", Bridge: "br0"}
	onSwitch := nic.Spec{Target: nic.Target{VM: "P2"}, NIC: "net0", Switch: &nic.Switch{Name: "sw0"}}
	otherBridge := requested
	otherBridge.Bridge = "br1"
	detaching := tapOn(func(dev *inventory.Device) { dev.Want.Phase = nic.PhaseDetaching })
	attaching := tapOn(func(dev *inventory.Device) { dev.Want.Phase = nic.PhaseAttaching })
	deleted := tapOn(func(dev *inventory.Device) { dev.Deleted = true })
	lost := onSocket(func(dev *inventory.Device) { dev.SwitchPort = inventory.SwitchPort{Path: "/sw0"} })
	for name, tc := range map[string]struct {
		requested     nic.Spec
		dev           *inventory.Device
		plugged, held bool
		want          verdict
		err           error
	}{
		"none":                       {requested, nil, false, false, none, nil},
		"a device without a link":    {requested, nil, true, false, none, nic.ErrExist},
		"the same":                   {requested, tapOn(nil), true, true, asRequested, nil},
		"the same, cut short":        {requested, attaching, true, true, asRequested, nil},
		"another process's":          {requested, tapOn(nil), true, false, none, nic.ErrExist},
		"left by a crash":            {requested, attaching, false, false, leftover, nil},
		"another bridge":             {otherBridge, tapOn(nil), true, true, none, nic.ErrExist},
		"being detached":             {requested, detaching, true, true, none, nic.ErrExist},
		"deleted under its guest":    {requested, deleted, true, true, disconnected, nil},
		"deleted, on another bridge": {otherBridge, deleted, true, true, none, nic.ErrExist},
		"on a switch":                {onSwitch, onSocket(nil), true, true, asRequested, nil},
		"its switch has ended":       {onSwitch, lost, true, true, disconnected, nil},
		"a switch for a bridge":      {requested, onSocket(nil), true, true, none, nic.ErrExist},
	} {
		got, err := judge(tc.requested, tc.dev, tc.plugged, tc.held, 7)
		if got.verdict != tc.want || !errors.Is(err, tc.err) || got.verdict != none && got.dev != tc.dev {
			t.Errorf("%s: %v, %v; want %v, %v", name, got.verdict, err, tc.want, tc.err)
		}
	}
}

// fakeUnplugger unplugs nothing; its Unplug returns err.
type fakeUnplugger struct{ err error }

func (fakeUnplugger) UnplugText(string) string { return "unplug" }
func (f fakeUnplugger) Unplug(context.Context, string, func(time.Duration)) error {
	return f.err
}
func (fakeUnplugger) RequestUnplug(context.Context, string) error { return nil }

// detaching returns a detach of dev that has found its guest.
func detaching(m *Manager, dev *inventory.Device, err error) *detachment {
	return &detachment{
		m: m, dev: dev, spec: DetachSpec{Target: nic.Target{VM: "P2"}, NIC: "net0"},
		guest: &guest.Guest{Found: &guest.Found{}, Unplugger: fakeUnplugger{err}},
	}
}

// TestDetachPlan: the steps of a detach, by what there is of the NIC.
func TestDetachPlan(t *testing.T) {
	stays := tapOn(func(dev *inventory.Device) { dev.Want.Via, dev.Tun.Persist = nic.ViaLibvirt, true })
	deleted := tapOn(func(dev *inventory.Device) { dev.Deleted = true })
	inNetns := tapOn(func(dev *inventory.Device) { dev.NetnsFile = &procfd.File{PID: 7} })
	onOVS := tapOn(func(dev *inventory.Device) { dev.Want.Type = nic.TypeOVS })
	unasked := onSocket(func(dev *inventory.Device) {
		dev.SwitchPort = inventory.SwitchPort{Err: inventory.ErrNotAsked}
	})
	for name, tc := range map[string]struct {
		dev                 *inventory.Device
		plugged, force, cut bool
		helper              string
		want                []string
		notices             int
	}{
		"nothing is there":             {nil, false, false, false, "", []string{"netdev_del"}, 0},
		"a device without a link":      {nil, true, false, false, "", []string{"unplug"}, 0},
		"a link without a device":      {tapOn(nil), false, false, false, "", []string{"release"}, 0},
		"a tap":                        {tapOn(nil), true, false, false, "", []string{"mark", "unplug", "gone"}, 0},
		"a macvtap":                    {inNetns, true, false, false, "", []string{"mark", "unplug", "gone"}, 0},
		"a tap, without privilege":     {tapOn(nil), true, false, false, "/helper", []string{"unplug", "gone"}, 0},
		"one that outlives its holder": {stays, true, false, false, "", []string{"mark", "unplug", "delete"}, 0},
		"a deleted tap":                {deleted, true, false, false, "", []string{"unplug", "gone"}, 0},
		"a socket": {
			onSocket(nil), true, false, false, "/helper",
			[]string{"mark", "unplug", "leave"},
			0,
		},
		"a socket, switch not asked": {unasked, true, false, false, "", []string{"unplug"}, 1},
		"by force": {
			tapOn(nil), true, true, false, "",
			[]string{"mark", "cut", "netdev_del", "left"},
			0,
		},
		"on Open vSwitch": {
			onOVS, true, false, false, "",
			[]string{"mark", "unplug", "gone", "leave"},
			0,
		},
		"on Open vSwitch, by force": {
			onOVS, true, true, false, "",
			[]string{"mark", "cut", "leave", "netdev_del", "left"},
			0,
		},
		"on Open vSwitch, by force, cut already": {
			onOVS, true, true, true, "",
			[]string{"netdev_del", "left", "leave"},
			0,
		},
		"by force, cut already":       {tapOn(nil), true, true, true, "", []string{"netdev_del", "left"}, 0},
		"by force, without privilege": {tapOn(nil), true, true, false, "/helper", []string{"netdev_del", "left"}, 0},
		"by force, a socket": {
			onSocket(nil), true, true, false, "",
			[]string{"mark", "cut", "netdev_del", "left"},
			0,
		},
		"by force, switch not asked": {unasked, true, true, false, "", []string{"netdev_del", "left"}, 1},
	} {
		d := detaching(&Manager{host: &backend.Maker{HelperPath: tc.helper}}, tc.dev, nil)
		d.spec.Force, d.isCut = tc.force, tc.cut
		var got []string
		for _, s := range d.steps(tc.plugged) {
			got = append(got, s.Name)
		}
		if !slices.Equal(got, tc.want) || len(d.notices) != tc.notices {
			t.Errorf("%s: %q, notices %q; want %q", name, got, d.notices, tc.want)
		}
	}
}

// TestMarkAfterUnplug: a guest that will not release the NIC keeps it without the mark; one that
// may still release it keeps the mark.
func TestMarkAfterUnplug(t *testing.T) {
	refusal := &libvirt.Error{Message: "cannot acquire state change lock"}
	for name, tc := range map[string]struct {
		err            error
		isAsked        bool
		refused, hints bool
	}{
		"released":                   {nil, false, false, false},
		"the guest refused":          {qmp.ErrGuestRefused, false, true, false},
		"the guest refused later":    {qmp.ErrGuestRefused, true, true, false},
		"QEMU refused":               {&qmp.Error{Command: "device_del"}, false, true, false},
		"QEMU refused to repeat":     {&qmp.Error{Command: "device_del"}, true, false, false},
		"QEMU kept the netdev":       {&qmp.Error{Command: "netdev_del"}, false, false, false},
		"libvirt refused":            {fmt.Errorf("why (%w)", refusal), false, true, false},
		"libvirt refused to repeat":  {refusal, true, false, false},
		"the domain's end":           {fmt.Errorf("%w: %w", qmp.ErrClosed, refusal), false, false, false},
		"no answer":                  {qmp.ErrUnplugTimeout, true, false, true},
		"the monitor's end":          {qmp.ErrClosed, true, false, false},
		"an interrupt while waiting": {context.Canceled, true, false, false},
	} {
		if got := isRefusal(tc.err, tc.isAsked); got != tc.refused {
			t.Errorf("%s: refused %v", name, got)
		}
		d := detaching(&Manager{host: &backend.Maker{}}, tapOn(nil), tc.err)
		err := d.unplugSteps()[1].Do(t.Context())
		if !errors.Is(err, tc.err) || tc.hints != (err != nil && strings.Contains(err.Error(), "--force")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnmarked: a refusal also ends an earlier detach, unless that has cut the NIC off.
func TestUnmarked(t *testing.T) {
	marked := func(up bool) func(*inventory.Device) {
		return func(dev *inventory.Device) {
			dev.Want.Phase, dev.Up = nic.PhaseDetaching, up
			dev.Alias, _ = dev.Want.Encode()
		}
	}
	cut := tapOn(marked(false))
	moving := tapOn(func(dev *inventory.Device) { dev.Want.Former = "sw0"; marked(true)(dev) })
	for name, tc := range map[string]struct {
		dev  *inventory.Device
		want nic.Phase
	}{
		"marked": {tapOn(marked(true)), nic.PhasePlugged},
		"cut":    {cut, nic.PhaseDetaching},
		"socket": {
			onSocket(func(dev *inventory.Device) { dev.Want.Phase, dev.Alias = nic.PhaseDetaching, cut.Alias }),
			nic.PhaseDetaching,
		},
		"moving": {moving, nic.PhaseChanging},
	} {
		got, _ := nic.ParseRecord(unmarked(tc.dev)) // which has no MAC
		if got.Phase != tc.want || got.NIC != "net0" || got.Former != tc.dev.Want.Former {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestCureOfASilentGuest: after a time-out the error asks for the guest's reason; after Ctrl-C it
// does not.
func TestCureOfASilentGuest(t *testing.T) {
	late, cancel := context.WithDeadline(t.Context(), time.Time{})
	defer cancel()
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	for ctx, asks := range map[context.Context]bool{late: true, interrupted: false} {
		err := explainUnreleased(ctx, qmp.ErrUnplugTimeout)
		if !errors.Is(err, qmp.ErrUnplugTimeout) || !strings.Contains(err.Error(), "--force") ||
			strings.Contains(err.Error(), "booting") != asks {
			t.Errorf("%v: %v", ctx.Err(), err)
		}
	}
}

// TestIsHeldBy: a NIC that another QEMU holds than the one that is meant is left alone. This
// process is no QEMU.
func TestIsHeldBy(t *testing.T) {
	dev := tapOn(func(dev *inventory.Device) { dev.Holders = nil })
	for _, pid := range []int{0, 7} {
		if err := isHeldBy(dev, pid); err != nil {
			t.Errorf("pid %d: %v", pid, err)
		}
	}
}
