package tapmgr_test

import (
	"os"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/vmm/qmptest"
)

// The test binary is also the process that the tests kill, or start without privileges, and a fake
// QEMU.
func TestMain(m *testing.M) {
	qmptest.Main()
	if os.Getenv(helperEnv) != "" {
		os.Exit(helper())
	}
	leaktest.MainInUserNS(m)
}
