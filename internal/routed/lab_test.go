package routed

import (
	"testing"

	"vmnet/testvm/lab"
)

// TestLabOlderKernel: before Linux 6.17 no setting of a single link makes it forward IPv6.
func TestLabOlderKernel(t *testing.T) {
	lab.Inside(t)
	t.Run("reachability", TestLiveReachability)
	t.Run("killed", TestLiveKilled)
	t.Run("faults", TestLiveFaults)
	t.Run("default route", TestLiveDefaultRouteSurvives)
	t.Run("inherit", TestLiveInherit)
}
