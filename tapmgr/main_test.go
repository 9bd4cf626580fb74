package tapmgr_test

import (
	"fmt"
	"os"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/network/server"
	"vmnet/internal/vmm/qmptest"
)

// The test binary is also the process that the tests kill, or start without privileges, a fake
// QEMU, and the parts of a network's server.
func TestMain(m *testing.M) {
	qmptest.Main()
	if is, err := server.Part(os.Args[1:]); is {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(helperEnv) != "" {
		os.Exit(helper())
	}
	leaktest.MainInUserNS(m)
}
