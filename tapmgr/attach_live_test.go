package tapmgr_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

func TestLiveNICOfABootedGuest(t *testing.T) {
	for _, c := range []testvm.Config{{Machine: "pc", CPUs: 2}, {Machine: "q35", SparePorts: 2, CPUs: 2}} {
		t.Run(c.Machine, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			g := h.booted(c)
			spec := g.spec("net0")
			spec.Queues = nic.QueuesAuto
			nic := h.attach(spec)
			if nic.Queues != 2 {
				t.Errorf("2 vCPUs got %d queues", nic.Queues)
			}
			h.reach(g, nic, guestAddr)
			h.listed(g, nic)
			h.shown(g, nic)
			h.refusesAnother(spec)

			second := h.attach(g.spec("net1"))
			if _, err := g.Guest.WaitNIC(h.context(20*time.Second), second.MAC); err != nil {
				t.Error(err)
			}
			h.detach(g, "net1")
			if err := g.Guest.WaitNICGone(h.context(20*time.Second), second.MAC); err != nil {
				t.Error(err)
			}
			h.nothingLeft(g, "net1")
			h.ping(g)

			if err := g.Kill(); err != nil {
				t.Fatal(err)
			}
			h.gone(nic.Interface)
		})
	}
}

func (h *host) listed(g *guest, found nic.NIC) {
	h.Helper()
	found.PID = g.Pid()
	got, err := h.List(g.name)
	if err != nil {
		h.Fatal(err)
	}
	if diff := cmp.Diff([]nic.NIC{found}, got); diff != "" {
		h.Errorf("list (-want +got):\n%s", diff)
	}
	if found.State != "forwarding" || found.Source != "br0" || found.Type != nic.TypeTap {
		h.Errorf("%+v: want a tap that forwards on br0", found)
	}
}

func (h *host) shown(g *guest, nic nic.NIC) {
	h.Helper()
	got, err := h.Show(h.context(10*time.Second), g.name)
	if err != nil || len(got) != 1 {
		h.Fatalf("show: %+v, %v", got, err)
	}
	d := got[0]
	if len(d.Holders) != 1 || d.Holders[0].PID != g.Pid() || len(d.Holders[0].FDs) != nic.Queues {
		h.Errorf("holders %+v: want QEMU %d with %d fds", d.Holders, g.Pid(), nic.Queues)
	}
	if d.Guest == nil || !d.Guest.Plugged || d.Guest.MAC != nic.MAC {
		h.Errorf("the guest's view %+v: want %s plugged", d.Guest, nic.MAC)
	}
	if len(d.Learned) == 0 || d.Learned[0].MAC != nic.MAC {
		h.Errorf("learned %+v, want %s", d.Learned, nic.MAC)
	}
	if d.Counters.RxPackets == 0 || d.Counters.TxPackets == 0 || d.Bridge != "br0" ||
		!strings.HasPrefix(d.HostMAC, "fe:") {
		h.Errorf("%+v: want traffic both ways on br0 and a host MAC in fe:", d)
	}
}

// refusesAnother attaches the same again and then something else.
func (h *host) refusesAnother(spec nic.Spec) {
	h.Helper()
	ctx := h.context(10 * time.Second)
	if res, err := h.Attach(ctx, spec); err != nil || res.Changed || res.NIC.Interface == "" {
		h.Errorf("the same again: %+v, %v: want no change", res, err)
	}
	spec.Queues, spec.Model = 1, "virtio-net-pci-non-transitional"
	_, err := h.Attach(ctx, spec)
	if !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), "queues is 2, asked for 1") ||
		!strings.Contains(err.Error(), "model is") {
		h.Errorf("another Spec: got %v, want ErrExist and both differences", err)
	}
}

func TestLiveTrafficCrossesWithOffloads(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := h.booted(testvm.Config{})
	h.reach(g, h.attach(g.spec("net0")), guestAddr)
	ctx := h.context(60 * time.Second)
	addr := h.tcpSink()
	if res, err := g.Guest.TCPSend(ctx, addr, 8<<20); err != nil {
		t.Errorf("guest to host: %+v, %v", res, err)
	}
	served, err := g.Guest.TCPServe(ctx, guestAddr+":0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.tcpSend(ctx, served, 8<<20); err != nil {
		t.Errorf("host to guest: %v", err)
	}
}

func TestLiveMTUFollowsTheBridge(t *testing.T) {
	h := newHost(t)
	br, err := h.nl.Link("br0")
	if err != nil {
		t.Fatal(err)
	}
	h.setMTU(br.Index, 9000)
	g := h.booted(testvm.Config{})
	ctx := h.context(20 * time.Second)
	for _, c := range []struct{ ask, want int }{{0, 9000}, {1500, 1500}, {4000, 4000}} {
		spec := g.spec("net0")
		spec.MTU = c.ask
		nic := h.attach(spec)
		link, err := g.Guest.WaitNIC(ctx, nic.MAC)
		if err != nil || link.MTU != c.want || nic.MTU != c.want {
			t.Errorf("asked for %d: the guest has %d, told %d, %v: want %d", c.ask, link.MTU, nic.MTU, err, c.want)
		}
		if tap, err := h.nl.Link(nic.Interface); err != nil || tap.MTU != 9000 {
			t.Errorf("asked for %d: the tap %+v, %v: want the bridge's 9000", c.ask, tap, err)
		}
		h.detach(g, "net0")
	}
	if br, _ := h.nl.Link("br0"); br.MTU != 9000 {
		t.Errorf("the bridge's MTU became %d", br.MTU)
	}
	spec := g.spec("net0")
	spec.MTU = 9001
	if _, err := h.Attach(ctx, spec); !errors.Is(err, nic.ErrLink) || !strings.Contains(err.Error(), "at most 9000") {
		t.Errorf("more than the bridge's: got %v", err)
	}
	h.nothingLeft(g, "net0")
}

func TestLiveAnyNameHasAReadableLink(t *testing.T) {
	h := newHost(t)
	g := h.booted(testvm.Config{Name: "web server, 100%", Paused: true})
	nic := h.attach(g.spec("net0"))
	l, err := h.nl.Link(g.name + "-net0") // its altname
	if err != nil || l.Name != nic.Interface || !strings.HasPrefix(l.Name, "web-serv-") {
		t.Errorf("%+v, %v: want %s by its full name too", l, err, nic.Interface)
	}
	if list, err := h.List(g.name); err != nil || len(list) != 1 || list[0].VM != g.name {
		t.Errorf("list %+v, %v", list, err)
	}
	if res, err := h.Attach(h.context(10*time.Second), g.spec("net0")); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
}

func TestLiveHostGivesTheTapNoAddress(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	nic := h.attach(g.spec("net0"))
	// The bridge has its address a moment later: then the tap would have one, too.
	var table []byte
	nstest.Eventually(t, 10*time.Second, "the bridge has an IPv6 address", func() bool {
		err := h.ns.Do(func() (err error) { table, err = os.ReadFile("/proc/thread-self/net/if_inet6"); return err })
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(table), "br0")
	})
	if strings.Contains(string(table), nic.Interface) {
		t.Errorf("IPv6 addresses:\n%s\nwant none on %s", table, nic.Interface)
	}
}

func TestLiveAttachesAtOnce(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	ctx := h.context(30 * time.Second)
	nics := []string{"net0", "net1", "net2", "net0", "net3", "net0"}
	changed := make([]bool, len(nics))
	var wg sync.WaitGroup
	for i, nic := range nics {
		wg.Go(func() {
			res, err := h.Attach(ctx, g.spec(nic))
			if err != nil {
				t.Error(err)
			}
			changed[i] = res.Changed
		})
	}
	wg.Wait()
	made := map[string]int{}
	for i, nic := range nics {
		if changed[i] {
			made[nic]++
		}
	}
	if diff := cmp.Diff(map[string]int{"net0": 1, "net1": 1, "net2": 1, "net3": 1}, made); diff != "" {
		t.Errorf("made (-want +got):\n%s", diff)
	}
	if got, err := h.List(g.name); err != nil || len(got) != 4 {
		t.Errorf("list %+v, %v: want 4", got, err)
	}
	if c, err := h.Check(ctx); err != nil || len(c.Differences) > 0 {
		t.Errorf("check %+v, %v: want no difference", c, err)
	}
}

func TestLiveListWaitsForNobody(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	h.attach(g.spec("net0"))
	c, err := qmp.Dial(h.context(20*time.Second), g.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := h.List(""); err != nil || len(got) != 1 { // the monitor stays taken: to wait for it would fail
		t.Errorf("list %+v, %v", got, err)
	}
	waits := false
	h.Progress = func(tapmgr.ProgressKind, string) { waits = true }
	_, err = h.Attach(h.context(time.Second), g.spec("net1"))
	if !errors.Is(err, qmp.ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || !waits {
		t.Errorf("attach: got %v, said that it waits: %v: want ErrBusy", err, waits)
	}
}

func TestLiveDryRunChangesNothing(t *testing.T) {
	h := newHost(t)
	g := h.booted(testvm.Config{Name: "longer-name", Machine: "q35", SparePorts: 1, Paused: true})
	before := monitorState(h, g)
	var steps []step.Step
	h.Run = func(_ context.Context, list []step.Step) error { steps = list; return nil }
	spec := g.spec("net0")
	spec.Queues = 2
	if _, err := h.Attach(h.context(10*time.Second), spec); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range steps {
		names = append(names, s.Name)
	}
	want := []string{
		"label", "tap", "queue 1", "settings", "altname", "port",
		"check vmnet-net0", "getfd vmnet-net0-label", "getfd vmnet-net0-q0", "getfd vmnet-net0-q1",
		"netdev_add vmnet-net0-netdev", "device_add vmnet-net0",
		"close", "verify",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if device := steps[slices.Index(want, "device_add vmnet-net0")].Text; !strings.Contains(device, `"bus":"port0"`) ||
		!strings.Contains(device, `"vectors":6`) {
		t.Errorf("device_add: %s", device)
	}
	if after := monitorState(h, g); after != before {
		t.Errorf("QEMU changed from\n%s to\n%s", before, after)
	}
	if _, err := h.nl.Link(mustName(g)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link was made: %v", err)
	}
}

func mustName(g *guest) string {
	name, _ := nic.InterfaceName(g.name, "net0")
	return name
}
