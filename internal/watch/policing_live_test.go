package watch

import (
	"testing"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// TestLivePolicing: what checks and filters frames is put back when somebody has removed it, and is
// left alone while a verb works on the NIC.
func TestLivePolicing(t *testing.T) {
	h := newHost(t)
	r := nic.Record{
		VM: "P2", NIC: "net0", Type: nic.TypeTap, Source: "br0", MAC: nic.DefaultMAC("P2", "net0"),
		Security: nic.Security{Checks: portsec.MAC | portsec.DHCP}, AllowIn: inbound.Rules{{Protocol: inbound.ICMP}},
		Model: nic.DefaultModel, Queues: 1,
	}
	alias := func() string {
		text, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	tap := h.routedTap("P2-net0", alias())
	l, err := h.nl.Link(tap.Name)
	if err != nil {
		t.Fatal(err)
	}
	complete := func() bool {
		guard, err := bpfguard.Read(h.nl, l)
		filters, inErr := bpfguard.ReadInbound(h.nl, l)
		return err == nil && inErr == nil && guard.Is(r.PortSecurity()) && filters.Is(r.Inbound())
	}
	remove := func() {
		t.Helper()
		if err := h.nl.DeleteClsact(l.Index); err != nil { // tc qdisc del dev P2-net0 clsact
			t.Fatal(err)
		}
	}
	h.watch(nil)
	nstest.Eventually(t, patience, "what was missing is there", complete)
	h.reported("port security set to mac,dhcp", l.Name)
	h.reported("what may come in set to icmp, it was all", l.Name)
	for range 3 {
		remove()
		nstest.Eventually(t, patience, "what was removed is there again", complete)
	}
	if err := bpfguard.AllowIn(h.nl, l, inbound.Config{}); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "one of the two is there again", complete)

	// A verb at work says so first. That another NIC is mended later shows that this one was looked
	// at.
	r.Phase = nic.PhaseChanging
	if err := h.nl.Set(l.Index, rtnl.Alias(alias())); err != nil {
		t.Fatal(err)
	}
	remove()
	r.VM, r.Phase = "P3", nic.PhasePlugged
	h.routedTap("P3-net0", alias())
	other, err := h.nl.Link("P3-net0")
	if err == nil {
		err = h.nl.AddClsact(other.Index) // an event
	}
	if err != nil {
		t.Fatal(err)
	}
	h.reported("port security set to mac,dhcp", other.Name)
	if complete() {
		t.Error("a NIC that a verb works on is not left alone")
	}
}
