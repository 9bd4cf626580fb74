package tapmgr_test

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/network/radv"
	"vmnet/internal/network/server"
	"vmnet/internal/vmm/qmptest"
)

// The test binary is also the process that the tests kill, or start without privileges, a fake
// QEMU, and the sender of a network's router advertisements.
func TestMain(m *testing.M) {
	qmptest.Main()
	if n := len(server.AdvertiseVerb); len(os.Args) > n && slices.Equal(os.Args[1:n+1], server.AdvertiseVerb) {
		if err := radv.Main(os.Args[n+1:]); err != nil {
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
