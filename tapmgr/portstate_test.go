package tapmgr

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
		o := ours{
			Link: &rtnl.Link{Up: true}, want: nic.Record{Switch: true},
			seat: seat{port: &control.Port{Stats: &vswitch.PortStats{State: state}}},
		}
		if got := o.ownState(); got != want {
			t.Errorf("a port that is %q: %q, want %q", state, got, want)
		}
	}
}
