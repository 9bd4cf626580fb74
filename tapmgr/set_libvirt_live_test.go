package tapmgr_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveLibvirtSet changes a NIC of a libvirt guest. What libvirt says of the running guest
// follows each time: the bridge in what the domain declares, the link's state in its interface.
// What it stores follows only if the NIC is stored.
func TestLiveLibvirtSet(t *testing.T) {
	h := newLibvirtHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	g := h.domain(testvm.Domain{Machine: "q35"})
	for _, persistent := range []bool{false, true} {
		spec := h.spec(g, "net0")
		spec.Persistent, spec.LinkDown = persistent, persistent
		tap, _ := nic.InterfaceName(g.Name, "net0")
		if persistent {
			h.neverUp(tap)
		}
		h.attach(spec)
		h.Run = nil
		if persistent {
			h.wants("attached", h.seat(tap), "br0, no carrier")
			for _, from := range [][]string{{g.Name}, {"--inactive", g.Name}} {
				if got := seatOf(h.virt.Virsh(append([]string{"dumpxml"}, from...)...)); got != "br0, no carrier" {
					t.Errorf("attached with its link down: the domain has %q", got)
				}
			}
		}
		for _, c := range []struct {
			edit func(*nic.Spec)
			seat string
		}{
			{func(s *nic.Spec) { s.Bridge, s.LinkDown = "br1", false }, "br1"},
			{func(s *nic.Spec) { s.LinkDown = true }, "br1, no carrier"},
			{func(s *nic.Spec) { s.Bridge, s.LinkDown = "br0", false }, "br0"},
		} {
			_, err := h.Set(h.context(20*time.Second), h.target(g), "net0", func(now nic.Spec) (nic.Spec, error) {
				c.edit(&now)
				return now, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			what := fmt.Sprintf("persistent %v, %s", persistent, c.seat)
			h.wants(what, h.seat(tap), c.seat)
			running, stored := h.virt.Virsh("dumpxml", g.Name), h.virt.Virsh("dumpxml", "--inactive", g.Name)
			if got := seatOf(running); got != c.seat {
				t.Errorf("%s: the running domain has %q", what, got)
			}
			want := ""
			if persistent {
				want = c.seat
			}
			if got := seatOf(stored); got != want {
				t.Errorf("%s: the stored domain has %q, want %q", what, got, want)
			}
		}
		if persistent { // what is stored follows, too
			h.try(&guest{name: g.Name}, trial{
				there: func(s *nic.Spec) { s.Bridge, s.LinkDown = "br1", true },
				back:  func(s *nic.Spec) { s.Bridge, s.LinkDown = "br0", false },
				seat: func() string {
					seat := h.seat(tap)
					for _, of := range [][]string{{g.Name}, {"--inactive", g.Name}} {
						if got := seatOf(h.virt.Virsh(append([]string{"dumpxml"}, of...)...)); got != seat {
							return fmt.Sprintf("%s, and the domain (%q) has %s", seat, of, got)
						}
					}
					return seat
				},
				then: "br1, no carrier", before: "br0",
			})
		}
		_, err := h.Detach(h.context(40*time.Second), tapmgr.DetachSpec{
			Target: h.target(g), NIC: "net0", Persistent: persistent,
		})
		if err != nil {
			t.Fatal(err)
		}
		h.gone(tap)
	}
}

// seatOf returns what a domain's XML says of its NIC net0, as host.seat does; "" for nothing.
func seatOf(xml string) string {
	_, rest, ok := strings.Cut(xml, `id="net0" bridge="`)
	if !ok {
		return ""
	}
	seat, _, _ := strings.Cut(rest, `"`)
	if strings.Contains(xml, "<link state='down'/>") {
		seat += ", no carrier"
	}
	return seat
}
