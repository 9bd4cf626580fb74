package inventory

import (
	"os"
	"strings"
	"testing"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/switches"
	"vmnet/tapmgr/nic"
)

// The processes and the clock of the tests' machine.
const (
	aQEMU    = 100
	aProcess = 200
	uptime   = 1000
)

// madeUp is that machine.
var madeUp = moment{sinceBoot: func() int64 { return uptime }, isVMM: func(pid int) bool { return pid == aQEMU }}

// anotherUser is neither root nor the caller.
const anotherUser = 4321

func heldBy(pids ...int) (all []nic.Holder) {
	for _, pid := range pids {
		all = append(all, nic.Holder{PID: pid, FDs: []int{9}})
	}
	return all
}

// heldTap is a NIC on its bridge that a QEMU holds.
func heldTap() *Device {
	dev := tapView().Device
	dev.Holders = heldBy(aQEMU)
	return dev
}

// leftTap is a persistent tap that nobody holds.
func leftTap() *Device {
	dev := heldTap()
	dev.Holders, dev.Tun = nil, &rtnl.Tun{Tap: true, Persist: true}
	return dev
}

// waitingTap is a tap that waits for a VMM which opens it by its name.
func waitingTap() *Device {
	dev := leftTap()
	dev.Want.Via, dev.Want.Phase, dev.Want.Until = nic.ViaName, nic.PhaseStarting, uptime+1
	return dev
}

// heldSocket is a NIC by a socket on its switch.
func heldSocket() *Device {
	dev := socketView().Device
	dev.Holders = heldBy(aQEMU)
	return dev
}

// TestVerdicts: what the state of a NIC is, and what reconcile and check do with it, by its device,
// its record and its holders.
func TestVerdicts(t *testing.T) {
	for name, test := range map[string]struct {
		of    func() *Device
		spoil func(dev *Device)

		state     nic.State
		reconcile Do
		note      string // in reconcile's; empty for none
		check     Do
		compare   bool
		said      string // in check's note; empty for none
	}{
		"held": {
			heldTap, func(*Device) {},
			"forwarding", AskGuest, "", AskGuest, true, "",
		},
		"held by QEMU and another": {
			heldTap, func(dev *Device) { dev.Holders = heldBy(aQEMU, aProcess) },
			"forwarding", LeaveAlone, "process 200 holds it", AskGuest, true, "",
		},
		"held by another": {
			heldTap, func(dev *Device) { dev.Holders = heldBy(aProcess) },
			"forwarding", LeaveAlone, "process 200 holds it",
			LeaveAlone, true, "process 200 holds it, which is no QEMU",
		},
		"held by who is not seen": {
			heldTap, func(dev *Device) { dev.Holders = nil },
			"forwarding", LeaveAlone, "cannot be seen", LeaveAlone, true, "cannot be seen",
		},
		"left over": {
			leftTap, func(*Device) {},
			nic.LeftOver, Remove, "", Remove, false, "",
		},
		"persistent, with a queue": {
			leftTap, func(dev *Device) { dev.Tun.Attached = true },
			"forwarding", LeaveAlone, "cannot be seen", LeaveAlone, true, "cannot be seen",
		},
		"starting": {
			leftTap, func(dev *Device) { dev.Want.Phase, dev.Want.Since = nic.PhaseStarting, uptime-299 },
			nic.Starting, LeaveAlone, "about to start", LeaveAlone, false, "about to start",
		},
		"has not started": {
			leftTap, func(dev *Device) { dev.Want.Phase, dev.Want.Since = nic.PhaseStarting, uptime-300 },
			nic.LeftOver, Remove, "", Remove, false, "",
		},
		"to start after now": { // the alias is of before the machine's start
			leftTap, func(dev *Device) { dev.Want.Phase, dev.Want.Since = nic.PhaseStarting, uptime+1 },
			nic.LeftOver, Remove, "", Remove, false, "",
		},
		"started": {
			heldTap, func(dev *Device) { dev.Want.Phase, dev.Want.Since = nic.PhaseStarting, uptime },
			nic.Incomplete, AskGuest, "", AskGuest, false, "",
		},
		"pending": {
			leftTap, func(dev *Device) { dev.Pending, dev.Want.Phase = true, nic.PhaseAttaching },
			nic.Incomplete, LeaveAlone, "being attached", LeaveAlone, false, "is being attached",
		},
		"being attached": {
			heldTap, func(dev *Device) { dev.Holders, dev.Want.Phase = heldBy(aProcess), nic.PhaseAttaching },
			nic.Attaching, LeaveAlone, "process 200 holds it", LeaveAlone, false, "is being attached",
		},
		"attach cut short": {
			heldTap, func(dev *Device) { dev.Want.Phase = nic.PhaseAttaching },
			nic.Incomplete, AskGuest, "", AskGuest, false, "",
		},
		"detaching": {
			heldTap, func(dev *Device) { dev.Want.Phase = nic.PhaseDetaching },
			nic.Detaching, AskGuest, "", AskGuest, true, "",
		},
		"waits for a VMM that opens it by its name": {
			waitingTap, func(*Device) {},
			nic.Starting, LeaveAlone, "waits for a VMM", LeaveAlone, false, "waits for a VMM",
		},
		"has waited for a VMM": {
			waitingTap, func(dev *Device) { dev.Want.Until = uptime },
			nic.LeftOver, Remove, "", Remove, false, "",
		},
		"opened by its name": {
			waitingTap, func(dev *Device) { dev.Holders = heldBy(aProcess) },
			nic.Incomplete, MendAlone, "", MendAlone, false, "",
		},
		"opened by its name, and complete": {
			waitingTap, func(dev *Device) { dev.Holders, dev.Want.Phase = heldBy(aProcess), nic.PhasePlugged },
			"forwarding", MendAlone, "", MendAlone, true, "",
		},
		"made to be opened by its name": {
			waitingTap, func(dev *Device) { dev.Holders, dev.Want.Phase = heldBy(aProcess), nic.PhaseAttaching },
			nic.Attaching, LeaveAlone, "holds it", LeaveAlone, false, "is being attached",
		},
		"on another bridge": {
			heldTap, func(dev *Device) { dev.MasterName = "br1" },
			nic.OtherBridge, AskGuest, "", AskGuest, true, "",
		},
		"a switch's tap on a bridge": {
			heldTap, func(dev *Device) { dev.Want.Switch = true },
			nic.OtherBridge, AskGuest, "", AskGuest, true, "",
		},
		"on no bridge": {
			heldTap, func(dev *Device) { dev.MasterName, dev.Port = "", nil },
			nic.NoBridge, AskGuest, "", AskGuest, true, "",
		},
		"down": {
			heldTap, func(dev *Device) { dev.Up = false },
			nic.Down, AskGuest, "", AskGuest, true, "",
		},
		"deleted under its guest": {
			heldTap, func(dev *Device) { dev.Deleted, dev.MasterName = true, "" },
			nic.Gone, AskGuest, "", AskGuest, true, "",
		},
		"macvtap": {
			func() *Device { return macvtapView().Device }, func(dev *Device) { dev.Holders = heldBy(aQEMU) },
			nic.Up, AskGuest, "", AskGuest, true, "",
		},
		"macvtap without a carrier": {
			func() *Device {
				return macvtapView().Device
			}, func(dev *Device) { dev.Holders, dev.Carrier = heldBy(aQEMU), false },
			nic.NoCarrier, AskGuest, "", AskGuest, true, "",
		},
		"macvtap that nobody holds, if all were seen": {
			func() *Device { return macvtapView().Device }, func(dev *Device) { dev.Holders, dev.allSeen = nil, true },
			nic.LeftOver, Remove, "", Remove, false, "",
		},
		"macvtap that nobody who is seen holds": {
			func() *Device { return macvtapView().Device }, func(dev *Device) { dev.Holders = nil },
			nic.Up, LeaveAlone, "cannot be seen", LeaveAlone, true, "cannot be seen",
		},
		"macvtap in a netns of its own": {
			func() *Device {
				return macvtapView().Device
			}, func(dev *Device) { dev.Holders, dev.allSeen, dev.NetnsFile = nil, true, &procfd.File{} },
			nic.Up, LeaveAlone, "cannot be seen", LeaveAlone, true, "cannot be seen",
		},
		"socket": {
			heldSocket, func(*Device) {},
			"forwarding", AskGuest, "", AskGuest, true, "",
		},
		"socket without its switch": {
			heldSocket, func(dev *Device) { dev.SwitchPort.Port = nil },
			nic.NoSwitch, AskGuest, "", AskGuest, true, "",
		},
		"socket whose switch is silent": {
			heldSocket, func(dev *Device) {
				dev.SwitchPort = SwitchPort{Path: "/run/sw0", Err: os.ErrDeadlineExceeded}
			},
			nic.Unknown, AskGuest, "", AskGuest, true, "",
		},
		"socket that nobody holds": {
			heldSocket, func(dev *Device) { dev.Holders, dev.allSeen = nil, true },
			nic.LeftOver, Remove, "", LeaveAlone, false, "",
		},
		"socket by another user's word": {
			heldSocket, func(dev *Device) { dev.UID = anotherUser },
			"forwarding", LeaveAlone, "", LeaveAlone, false, "",
		},
		"socket by another user's word, lost": {
			heldSocket, func(dev *Device) { dev.UID, dev.SwitchPort.Port = anotherUser, nil },
			nic.NoSwitch, LeaveAlone, "process 100 of user 4321",
			LeaveAlone, false, "nothing but process 100 of user 4321 says",
		},
		"socket of another user, vouched for": {
			heldSocket, func(dev *Device) { dev.UID, dev.vouched = anotherUser, true },
			"forwarding", AskGuest, "", AskGuest, true, "",
		},
	} {
		dev := test.of()
		test.spoil(dev)
		if got := dev.state(madeUp); got != test.state {
			t.Errorf("%s: state %q, want %q", name, got, test.state)
		}
		reconcile := dev.reconcileVerdict(madeUp)
		if reconcile.Do != test.reconcile || (reconcile.Note == "") != (test.note == "") ||
			!strings.Contains(reconcile.Note, test.note) {
			t.Errorf("%s: reconcile %+v, want %d and %q", name, reconcile, test.reconcile, test.note)
		}
		check := dev.checkVerdict(madeUp)
		if check.Do != test.check || check.Compare != test.compare || (check.Note == "") != (test.said == "") ||
			!strings.Contains(check.Note, test.said) {
			t.Errorf("%s: check %+v, want %d, %v and %q", name, check, test.check, test.compare, test.said)
		}
	}
}

// TestHolders: which process counts as the VMM, and which as another one.
func TestHolders(t *testing.T) {
	for _, test := range []struct {
		holders    []nic.Holder
		vmm, other int
	}{
		{nil, 0, 0},
		{heldBy(aQEMU), aQEMU, 0},
		{heldBy(aProcess), 0, aProcess},
		{heldBy(aProcess, aQEMU), aQEMU, aProcess},
	} {
		dev := Device{Holders: test.holders}
		if vmm, other := dev.vmmPID(madeUp), dev.otherHolder(madeUp); vmm != test.vmm || other != test.other {
			t.Errorf("%+v: VMM %d and other %d, want %d and %d", test.holders, vmm, other, test.vmm, test.other)
		}
	}
	if dev := (Device{Holders: heldBy(os.Getpid())}); dev.VMMPID() != 0 || dev.OtherHolder() != os.Getpid() {
		t.Errorf("this process is no QEMU: %d, %d", dev.VMMPID(), dev.OtherHolder())
	}
}

// TestWhichDeviceIsMeant: two users' guests may have one name, and a NIC without a link is whatever
// its label says.
func TestWhichDeviceIsMeant(t *testing.T) {
	tap, socket := *heldTap(), *heldSocket()
	foreign := socket
	foreign.UID = anotherUser
	other := *heldTap()
	other.Name, other.Holders = "P2-net0b", heldBy(aProcess)
	for name, test := range map[string]struct {
		all  []Device
		pid  int
		want *Device // nil for none
		err  bool
	}{
		"none":    {nil, 0, nil, false},
		"the one": {[]Device{tap}, 0, &tap, false},
		// the caller finds out who holds it
		"the one, of another process":         {[]Device{tap}, aProcess, &tap, false},
		"two":                                 {[]Device{tap, other}, 0, nil, true},
		"two, one of the process":             {[]Device{tap, other}, aProcess, &other, false},
		"two, none of the process":            {[]Device{tap, other}, 300, nil, false},
		"a socket":                            {[]Device{socket}, 0, &socket, false},
		"a socket, of another process":        {[]Device{socket}, aProcess, nil, false},
		"another user's socket":               {[]Device{foreign}, 0, nil, false},
		"another user's socket, by its guest": {[]Device{foreign}, aQEMU, &foreign, false},
		"another user's socket beside a tap":  {[]Device{foreign, tap}, 0, &tap, false},
	} {
		got, err := chosen(append([]Device(nil), test.all...), nic.Target{VM: "P2", PID: test.pid}, "net0")
		switch {
		case (err != nil) != test.err:
			t.Errorf("%s: %v", name, err)
		case (got == nil) != (test.want == nil), got != nil && (got.Name != test.want.Name ||
			got.IsSocket() != test.want.IsSocket() || got.UID != test.want.UID):
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// TestSwitchPortOfANIC: if two guests have one name, each has the port that it holds; the switch
// named in the record is trusted.
func TestSwitchPortOfANIC(t *testing.T) {
	dev := heldSocket()
	dev.Want.Source = "/run/vmnet/sw0"
	label := func(change func(*nic.Record)) string {
		r := dev.Want
		change(&r)
		return r.Label(1)
	}
	mine := label(func(*nic.Record) {})
	for name, test := range map[string]struct {
		ports []control.Port
		want  string // the port's name; empty for none
	}{
		"no port":          {nil, ""},
		"its port":         {[]control.Port{{Name: "a", Label: mine, Holder: aQEMU}}, "a"},
		"another holder's": {[]control.Port{{Name: "a", Label: mine, Holder: aProcess}}, ""},
		"another NIC's": {[]control.Port{{Name: "a", Label: label(func(r *nic.Record) {
			r.NIC = "net1"
		}), Holder: aQEMU}}, ""},
		"another guest's": {[]control.Port{{Name: "a", Label: label(func(r *nic.Record) {
			r.VM = "P3"
		}), Holder: aQEMU}}, ""},
		"no label": {[]control.Port{{Name: "P2-net0", Holder: aQEMU}}, ""},
		"two, one of its name": {[]control.Port{
			{Name: "a", Label: mine, Holder: aQEMU},
			{Name: "P2-net0", Label: mine, Holder: aQEMU},
		}, "P2-net0"},
		"two, the first": {[]control.Port{
			{Name: "a", Label: mine, Holder: aQEMU},
			{Name: "b", Label: mine, Holder: aQEMU},
		}, "a"},
	} {
		got := switchPortGiven(madeUp, dev,
			[]switches.Reply{
				{Path: "/run/vmnet/other", Ports: []control.Port{{Name: "x", Label: mine, Holder: aQEMU}}},
				{Path: "/run/vmnet/sw0", Ports: test.ports},
			})
		if got.Err != nil || (got.Port == nil) != (test.want == "") || got.Port != nil && got.Port.Name != test.want {
			t.Errorf("%s: %+v, want %q", name, got, test.want)
		}
	}
	if got := switchPortGiven(madeUp, dev, nil); got.Err == nil || got.Port != nil {
		t.Errorf("a switch that was not asked: %+v", got)
	}
	if got := switchPortGiven(madeUp, dev,
		[]switches.Reply{{Path: "/run/vmnet/sw0", Err: os.ErrDeadlineExceeded}}); got.Err != os.ErrDeadlineExceeded {
		t.Errorf("a switch that is silent: %+v", got)
	}
}
