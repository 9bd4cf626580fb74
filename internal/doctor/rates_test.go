package doctor

import (
	"testing"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

func TestTooFast(t *testing.T) {
	c := portrate.Config{Up: portrate.Limit{Bits: 1e9}, Down: portrate.Limit{Bits: 25e8}}
	for speed, want := range map[uint64]string{
		0: "", 1e10: "", 25e8: "", 1e9: "--rate-down 2500M is", 1e8: "--rate-up 1G and --rate-down 2500M",
	} {
		got := tooFast("rates of P2/net0", c, "eth0", speed)
		if want == "" {
			if len(got) != 0 {
				t.Errorf("%d: %+v", speed, got)
			}
			continue
		}
		wants(t, got, Check{"rates of P2/net0", Warn, want, "vmnet set"})
	}
}

// TestQueued: at a tap, the frames for the guest wait; a macvtap sends those of the guest.
func TestQueued(t *testing.T) {
	rates := portrate.Config{Up: portrate.Limit{Bits: 1}, Down: portrate.Limit{Bits: 2}}
	for kind, want := range map[string]portrate.Limit{
		nic.TypeTap: rates.Down, nic.TypeOVS: rates.Down, nic.TypeRouted: rates.Down, "macvtap": rates.Up,
	} {
		if got := queued(nic.Record{Type: kind, Rates: rates}); got != want {
			t.Errorf("%s: %v, want %v", kind, got, want)
		}
	}
}

// TestLiveRates: limits that are not in force, those that cost queues, and those above what the
// interface on the way carries are findings.
func TestLiveRates(t *testing.T) {
	nstest.RequireTun(t)
	m := Machine{NS: nstest.New(t)}
	if got := m.rates(t.Context()); len(got) != 0 {
		t.Errorf("no NIC: %+v", got)
	}
	nl, err := rtnl.Open(m.NS)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	tap, err := tun.Create(m.NS, "P2-net0", true)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	l, err := nl.Link("P2-net0")
	if err != nil {
		t.Fatal(err)
	}
	r := nic.Record{
		VM: "P2", NIC: "net0", Type: nic.TypeTap, Source: "br0", MAC: nic.DefaultMAC("P2", "net0"),
		Model: nic.DefaultModel, Queues: 2, Phase: nic.PhasePlugged,
		Rates: portrate.Config{Up: portrate.Limit{Packets: 1000}, Down: portrate.Limit{Bits: 1e9}},
	}
	alias, err := r.Encode()
	if err == nil {
		err = nl.Set(l.Index, rtnl.Alias(alias))
	}
	if err != nil {
		t.Fatal(err)
	}
	found := m.rates(t.Context())
	wants(t, found, Check{"rates of P2/net0", Fail, "found none", "vmnet reconcile"})
	wants(t, found, Check{"rates of P2/net0", Warn, "its 2 queues", "--queues 1"})
	if err := ratelimit.Set(nl, l, portrate.Config{Up: portrate.Limit{Bits: 1e8}, Shape: true}); err != nil {
		t.Fatal(err)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	wants(t, m.rates(t.Context()), Check{"rates", Warn, "left of shaped NICs", "vmnet reconcile"})
}
