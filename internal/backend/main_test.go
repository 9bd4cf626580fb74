package backend

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"vmnet/internal/leaktest"
)

// The test binary is also the privileged helper that an attach starts.
func TestMain(m *testing.M) {
	if way := os.Getenv(helperEnv); way != "" && slices.Contains(os.Args, "--attach") {
		if err := helperRole(way); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	leaktest.MainInUserNS(m)
}
