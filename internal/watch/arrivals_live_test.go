package watch

import (
	"context"
	"slices"
	"testing"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// TestLivePreparedNICsOfADomain: what libvirt's hook has prepared is committed when the watcher
// begins, and when libvirt continues a guest, if nobody else has done it.
func TestLivePreparedNICsOfADomain(t *testing.T) {
	m := newMachine(t)
	m.start("web", "", "")
	m.m.Libvirt = m.daemon.URI()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	made, err := m.m.Attach(ctx, nic.Spec{
		Target: nic.Target{VM: "web"}, NIC: "net0", Bridge: "br0", Vhost: nic.VhostOff,
	})
	if err != nil {
		t.Fatal(err)
	}
	device := made.NIC.Interface
	m.prepare(device)
	m.watch(m.dial, func(c *Config) { c.Commit = m.m.CommitArrived })
	committed := func(what string, times int) {
		t.Helper()
		nstest.Eventually(t, patience, what, func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return times == len(slices.DeleteFunc(slices.Clone(m.reports), func(r Report) bool {
				return r.Text != "committed: its guest has arrived" || r.NIC != "net0" || r.Err != nil
			}))
		})
		l, err := m.nl.Link(device)
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := nic.ParseRecord(l.Alias); !ok || r.Prepared || !l.Up {
			t.Errorf("%s: %+v", what, l)
		}
	}
	committed("as it begins", 1)
	m.prepare(device)
	m.daemon.Virsh("resume", "web")
	committed("when libvirt continues the guest", 2)
	m.daemon.Virsh("suspend", "web")
	m.daemon.Virsh("resume", "web")
	m.quiet(2)
}

// prepare makes a device as that of a guest that is to come.
func (m *machine) prepare(device string) {
	m.Helper()
	l, err := m.nl.Link(device)
	if err != nil {
		m.Fatal(err)
	}
	r, _ := nic.ParseRecord(l.Alias)
	r.Prepared = true
	text, err := r.Encode()
	if err == nil {
		err = m.nl.Set(l.Index, rtnl.Up(false), rtnl.Alias(text))
	}
	if err != nil {
		m.Fatal(err)
	}
}
