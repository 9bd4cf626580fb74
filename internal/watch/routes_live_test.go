package watch

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// routedTap makes a tap with the record of a routed NIC, as an attach does that was cut off before
// it has set the rest.
func (h *host) routedTap(name, alias string) *tun.Tap {
	h.Helper()
	tap, err := tun.Create(h.ns, name, false)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = tap.Close() })
	l, err := h.nl.Link(name)
	if err == nil {
		err = h.nl.SetQuiet(l.Index, rtnl.Alias(alias), rtnl.Up(true))
	}
	if err != nil {
		h.Fatal(err)
	}
	return tap
}

// TestLiveRoutes: the host gets what a routed NIC needs and loses with its uplink, and what the NIC
// leaves when its guest is killed goes at once.
func TestLiveRoutes(t *testing.T) {
	h := newHost(t)
	h.ip("link", "add", "eth0", "type", "veth", "peer", "name", "lan0")
	h.ip("link", "set", "eth0", "up")
	h.ip("addr", "add", "192.0.2.2/24", "dev", "eth0")
	alias, err := nic.Record{
		VM: "P2", NIC: "net0", Type: nic.TypeRouted, Source: "eth0", MAC: nic.DefaultMAC("P2", "net0"),
		IP: []netip.Addr{netip.MustParseAddr("192.0.2.11")}, Model: nic.DefaultModel, Queues: 1,
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	tap := h.routedTap("P2-net0", alias)
	h.watch(nil)
	entries := func() int {
		all, err := h.nl.Proxies()
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	nstest.Eventually(t, patience, "the entry is there", func() bool { return entries() == 1 })
	h.reported("restored: ", "P2-net0")

	h.ip("link", "set", "eth0", "down")
	h.ip("link", "set", "eth0", "up")
	nstest.Eventually(t, patience, "the entry is there again", func() bool { return entries() == 1 })

	killed := time.Now()
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the entry is gone", func() bool { return entries() == 0 })
	t.Logf("the entry is gone after %v", time.Since(killed))
	h.reported("removed: proxy entry of 192.0.2.11", "eth0")
	nstest.Eventually(t, patience, "forwarding is set back", func() bool {
		var value []byte
		err := h.ns.Do(func() (err error) {
			value, err = os.ReadFile("/proc/sys/net/ipv4/conf/eth0/forwarding")
			return err
		})
		return err == nil && strings.TrimSpace(string(value)) == "0"
	})
}

// TestLiveShaperGoes: the shaper of a NIC goes when its guest is killed.
func TestLiveShaperGoes(t *testing.T) {
	h := newHost(t)
	r := nic.Record{
		VM: "P2", NIC: "net0", Type: nic.TypeTap, Source: "br0", MAC: nic.DefaultMAC("P2", "net0"),
		Model: nic.DefaultModel, Queues: 1,
		Rates: portrate.Config{Up: portrate.Limit{Bits: 1e8}, Shape: true},
	}
	alias, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	tap := h.routedTap("P2-net0", alias)
	l, err := h.nl.Link("P2-net0")
	if err == nil {
		err = ratelimit.Set(h.nl, l, r.Rates)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.watch(nil)
	shapers := func() int {
		all, err := h.nl.Links("ifb", 0)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if shapers() != 1 {
		t.Fatalf("%d shapers at first", shapers())
	}
	killed := time.Now()
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the shaper is gone", func() bool { return shapers() == 0 })
	t.Logf("the shaper is gone after %v", time.Since(killed))
}

// TestLiveShaperOfMacvtapGoes: so does that of a macvtap that libvirt has by its name, and that is
// there when the watch begins.
func TestLiveShaperOfMacvtapGoes(t *testing.T) {
	h := newHost(t)
	h.ip("link", "add", "eth0", "type", "veth", "peer", "name", "lan0")
	h.ip("link", "add", "P2-net0", "link", "eth0", "type", "macvtap", "mode", "bridge")
	r := nic.Record{
		VM: "P2", NIC: "net0", Type: "macvtap", Source: "eth0", MAC: nic.DefaultMAC("P2", "net0"), Mode: "bridge",
		Model: nic.DefaultModel, Queues: 1, Via: nic.ViaLibvirt,
		Rates: portrate.Config{Down: portrate.Limit{Bits: 1e8}, Shape: true},
	}
	alias, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.nl.Link("P2-net0")
	if err == nil {
		err = h.nl.Set(l.Index, rtnl.Alias(alias))
	}
	if err == nil {
		err = ratelimit.Set(h.nl, l, r.Rates)
	}
	if err != nil {
		t.Fatal(err)
	}
	shapers := func() int {
		all, err := h.nl.Links("ifb", 0)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if shapers() != 1 {
		t.Fatalf("%d shapers at first", shapers())
	}
	h.watch(nil)
	h.ip("link", "delete", "P2-net0")
	nstest.Eventually(t, patience, "the shaper is gone", func() bool { return shapers() == 0 })
}
