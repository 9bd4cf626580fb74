package tapmgr_test

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// fakeGuest is a process that is found, answers and holds files like a QEMU. What it is given, and
// the bridges and switches, are real.
type fakeGuest struct {
	*qmptest.QEMU
	h *host
}

func (h *host) fake(c qmptest.Config) *fakeGuest {
	h.Helper()
	c.Name = h.name("P2")
	return &fakeGuest{qmptest.Start(h, c), h}
}

// fakeTest makes a host and a guest on it.
func fakeTest(t *testing.T) (*host, *fakeGuest) {
	t.Helper()
	t.Parallel()
	h := newUserHost(t)
	return h, h.fake(qmptest.Config{})
}

func (g *fakeGuest) spec(nicID string) nic.Spec {
	return nic.Spec{Target: nic.Target{VM: g.Name}, NIC: nicID, Bridge: "br0", Vhost: nic.VhostOff}
}

func (g *fakeGuest) link(nicID string) string {
	name, _ := nic.InterfaceName(g.Name, nicID)
	return name
}

// tap returns the NIC's tap, which must be there.
func (g *fakeGuest) tap(nicID string) *rtnl.Link {
	g.h.Helper()
	l, err := g.h.nl.Link(g.link(nicID))
	if err != nil {
		g.h.Fatal(err)
	}
	return l
}

func (g *fakeGuest) tryAttach(spec nic.Spec) (nic.Result, error) {
	g.h.Helper()
	return g.h.Attach(g.h.context(20*time.Second), spec)
}

func (g *fakeGuest) tryDetach(nicID string, within time.Duration, force bool) (tapmgr.DetachResult, error) {
	g.h.Helper()
	spec := tapmgr.DetachSpec{Target: nic.Target{VM: g.Name}, NIC: nicID, Force: force}
	return g.h.Detach(g.h.context(within), spec)
}

// has demands that the guest has these NICs and no others.
func (g *fakeGuest) has(nics ...string) {
	g.h.Helper()
	var devices, netdevs, labels []string
	for _, id := range nics {
		devices = append(devices, "vmnet-"+id)
		netdevs = append(netdevs, "vmnet-"+id+"-netdev")
		labels = append(labels, "vmnet-"+id+"-label")
	}
	s := g.State()
	if !slices.Equal(slices.Sorted(maps.Keys(s.Devices)), devices) ||
		!slices.Equal(slices.Sorted(maps.Keys(s.Netdevs)), netdevs) || !slices.Equal(s.FDs, labels) {
		g.h.Errorf("the guest has devices %v, netdevs %v and files %q, want NICs %q", s.Devices, s.Netdevs, s.FDs, nics)
	}
}

// nothingLeft demands that neither the host nor the guest has anything of any NIC.
func (g *fakeGuest) nothingLeft() {
	g.h.Helper()
	g.has()
	nstest.Eventually(g.h, 20*time.Second, "no tap is left", func() bool {
		taps, err := g.h.nl.Links("tun", 0)
		return err == nil && len(taps) == 0
	})
}

// state returns the state of the one NIC that is listed.
func (g *fakeGuest) state() nic.State {
	g.h.Helper()
	list, err := g.h.List(g.Name)
	if err != nil || len(list) != 1 {
		g.h.Fatalf("list %+v, %v: want one NIC", list, err)
	}
	return list[0].State
}

// killedAttach attaches in a process that dies by SIGKILL when it has done the step of that name.
func (g *fakeGuest) killedAttach(spec nic.Spec, step string) {
	g.h.Helper()
	if out, err := g.h.command(order{Spec: spec, KillAt: step, After: true}).CombinedOutput(); err == nil ||
		!strings.Contains(err.Error(), "killed") {
		g.h.Fatalf("the attach that is to be killed at %s: %v: %s", step, err, out)
	}
}

// noLink demands that no link of that name is there.
func (h *host) noLink(name string) {
	h.Helper()
	if _, err := h.nl.Link(name); !errors.Is(err, fs.ErrNotExist) {
		h.Errorf("link %s: %v, want none", name, err)
	}
}
