package guest

import (
	"errors"
	"testing"

	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// TestIsHere: a guest's NICs go up where it is, whether it runs or is paused there, and nowhere
// else.
func TestIsHere(t *testing.T) {
	for state, want := range map[qmp.RunState]error{
		qmp.StateRunning:   nil,
		qmp.StatePaused:    nil,
		qmp.StateUnstarted: nil,
		"suspended":        nil,
		qmp.StateIncoming:  ErrNotArrived,
		qmp.StateLeaving:   nic.ErrOtherGuest,
		qmp.StateLeft:      nic.ErrOtherGuest,
	} {
		if err := isHere(state); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", state, err, want)
		}
	}
}
