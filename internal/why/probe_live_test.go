package why

import (
	"context"
	"net/netip"
	"testing"

	"vmnet/internal/nstest"
)

// TestLivePing: the host itself answers, by IPv4 and IPv6.
func TestLivePing(t *testing.T) {
	s := newBareHost(t)
	s.sh("ip link set lo up; ip address add 2001:db8::1/128 dev lo nodad")
	for _, a := range []string{"127.0.0.1", "::1", "2001:db8::1"} {
		if err := (&live{ns: s.ns}).ping(s.ctx(), netip.MustParseAddr(a)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&live{ns: s.ns}).ping(ctx, netip.MustParseAddr("::1")); err == nil {
		t.Error("a context that has ended: no error")
	}
	empty := nstest.New(t)
	if err := (&live{ns: empty}).ping(s.ctx(), netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("no route: no error")
	}
}
