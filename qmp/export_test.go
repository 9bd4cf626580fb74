package qmp

import "testing"

// StartQEMU starts a QEMU whose processors stand, for the tests beside this package. It returns the
// path of its monitor.
func StartQEMU(t *testing.T, machine string, args ...string) (monitor string) {
	t.Helper()
	return startQEMU(t, machine, args...).path
}
