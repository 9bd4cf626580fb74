package inventory

import (
	"testing"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// TestStateOfASwitchPort: a port that its switch has stopped, or that is down, is not listed as
// forwarding.
func TestStateOfASwitchPort(t *testing.T) {
	for state, want := range map[vport.State]nic.State{
		vport.StateUp: "forwarding", vport.StateDown: nic.Down, vport.StateStopped: nic.Stopped, "": "forwarding",
	} {
		dev := Device{
			Link: &rtnl.Link{Up: true}, Want: nic.Record{Switch: true},
			SwitchPort: SwitchPort{Port: &control.Port{Stats: &vport.Stats{State: state}}},
		}
		if got := dev.ownState(); got != want {
			t.Errorf("a port that is %q: %q, want %q", state, got, want)
		}
	}
}
