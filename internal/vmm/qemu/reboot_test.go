package qemu

import (
	"strings"
	"testing"
)

func TestEndsOnReset(t *testing.T) {
	for line, want := range map[string]bool{
		"qemu":                                false,
		"qemu -no-reboot":                     true,
		"qemu --no-reboot -action panic=none": true,
		"qemu -action reboot=shutdown,shutdown=pause": true,
		"qemu -no-reboot -action reboot=reset":        false,
		"qemu -action reboot=reset -no-reboot":        true,
		"qemu -action":                                false,
		"no-reboot":                                   false,
	} {
		if got := endsOnReset(strings.Fields(line)); got != want {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}
