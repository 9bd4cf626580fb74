package routed

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

func TestAskError(t *testing.T) {
	if err := askError(nil, "eth0", netip.MustParseAddr("192.0.2.7")); err != nil {
		t.Error(err)
	}
	for addr, sysctl := range map[string]string{
		"192.0.2.7":   "net.ipv4.neigh.default.gc_thresh3",
		"2001:db8::7": "net.ipv6.neigh.default.gc_thresh3",
	} {
		full := fmt.Errorf("set neighbor: %w", syscall.ENOBUFS)
		if err := askError(full, "eth0", netip.MustParseAddr(addr)); !strings.Contains(err.Error(), sysctl) {
			t.Errorf("%s: %v, want %s", addr, err, sysctl)
		}
		if err := askError(syscall.EPERM, "eth0", netip.MustParseAddr(addr)); !errors.Is(err, syscall.EPERM) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
