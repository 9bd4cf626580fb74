package tapmgr_test

import (
	"net/netip"
	"testing"
	"time"

	"vmnet/bridge/portsec"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveSecurityOfABootedGuest: a guest with its own addresses reaches the host by IPv4 and IPv6,
// duplicate address detection and neighbor discovery included, and with another address nobody.
func TestLiveSecurityOfABootedGuest(t *testing.T) {
	h := newHost(t)
	g := h.booted(testvm.Config{})
	spec := g.spec("net0")
	spec.IP = []netip.Addr{netip.MustParseAddr(guestAddr), netip.MustParseAddr("fd07::2")}
	spec.Security.Checks = portsec.All
	n := h.attach(spec)
	h.reach(g, n, guestAddr)
	h.ip("addr", "add", "fd07::1/64", "dev", "br0", "nodad")
	ctx := h.context(30 * time.Second)
	if err := g.Guest.UseNIC(ctx, n.MAC, "fd07::2/64"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Guest.Ping(ctx, "fd07::1"); err != nil {
		t.Errorf("ping by IPv6: %v", err)
	}
	if drops := h.showed(g.name).Drops; len(drops) != 0 {
		t.Errorf("of its own frames were dropped %v", drops)
	}
	_, err := h.set(g, func(s *nic.Spec) { s.IP = []netip.Addr{netip.MustParseAddr("10.7.0.99")} })
	if err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 30*time.Second, "a packet is dropped for its address", func() bool {
		if _, err := g.Guest.Ping(h.context(time.Second), hostAddr); err == nil {
			t.Error("a guest with another address is answered")
		}
		return h.showed(g.name).Drops[portsec.SourceIP.String()] > 0
	})
}
