package guest

import (
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/vmm/qmptest"
)

// The test binary is also a fake QEMU.
func TestMain(m *testing.M) {
	qmptest.Main()
	leaktest.MainInUserNS(m)
}
