package switches

import (
	"os"
	"testing"

	"vmnet/internal/holders"
)

// TestWhoIsBelieved: any user can write a label, run a switch and give a process a guest's name.
func TestWhoIsBelieved(t *testing.T) {
	const root, caller, anotherUser = 0, 1000, 4321
	for _, test := range []struct {
		caller, uid int
		path        string
		want        bool
	}{
		{caller, caller, "/run/user/1000/vmnet/sw0", true},
		{caller, root, "/run/vmnet/sw0", true},
		{caller, anotherUser, "/run/user/4321/vmnet/sw0", false},
		{caller, anotherUser, "/run/vmnet/sw0", false}, // a user cannot know who created it
		{root, anotherUser, "/run/vmnet/sw0", true},    // root has started it for that user
		{root, anotherUser, "/run/vmnetwork/sw0", false},
		{root, anotherUser, "/tmp/run/vmnet/sw0", false},
		{root, holders.Nobody, "/run/user/4321/vmnet/sw0", false},
		{caller, holders.Nobody, "/run/user/4321/vmnet/sw0", false},
	} {
		if got := trustsSwitch(test.caller, test.uid, test.path); got != test.want {
			t.Errorf("uid %d trusts the switch %s of uid %d: %v", test.caller, test.path, test.uid, got)
		}
	}
	for _, test := range []struct {
		switchOf    int
		trusted     bool
		processOf   int
		notReadable error
		want        bool
	}{
		{anotherUser, false, anotherUser, nil, true},
		{anotherUser, false, root, nil, false},
		{caller, true, anotherUser, nil, true},
		{caller, true, 0, os.ErrPermission, true},
		{anotherUser, false, 0, os.ErrPermission, false},
		{caller, true, 0, os.ErrNotExist, false},
	} {
		a := Reply{uid: test.switchOf, Trusted: test.trusted}
		if got := a.mayHoldFor(test.processOf, test.notReadable); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}
