package inventory

import (
	"testing"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// TestStateOfASwitchPort: a port that its switch has stopped, or that is down there, is not said to
// forward.
func TestStateOfASwitchPort(t *testing.T) {
	for state, want := range map[vswitch.PortState]nic.State{
		vswitch.StateUp: "forwarding", vswitch.StateDown: nic.Down, vswitch.StateStopped: nic.Stopped, "": "forwarding",
	} {
		dev := Device{
			Link: &rtnl.Link{Up: true}, Want: nic.Record{Switch: true},
			SwitchPort: SwitchPort{Port: &control.Port{Stats: &vswitch.PortStats{State: state}}},
		}
		if got := dev.ownState(); got != want {
			t.Errorf("a port that is %q: %q, want %q", state, got, want)
		}
	}
}
