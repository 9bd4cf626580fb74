package tapmgr_test

import (
	"os"
	"testing"

	"vmnet/internal/leaktest"
)

// The test binary is also the process that the tests kill, or start without rights.
func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(helper())
	}
	leaktest.MainInUserNS(m)
}
