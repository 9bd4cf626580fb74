package watch

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/libvirt"
	"vmnet/tapmgr"
)

// host is a netns that is watched.
type host struct {
	testing.TB
	ns *netns.NS
	nl *rtnl.Conn
	m  *tapmgr.Manager

	mu      sync.Mutex
	reports []Report
	times   []time.Time // of the reports
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{TB: t, ns: nstest.New(t)}
	var err error
	if h.nl, err = rtnl.Open(h.ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.nl.Close)
	if h.m, err = tapmgr.Open(h.ns.Path()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.m.Close)
	h.bridge("br0")
	return h
}

func (h *host) bridge(name string) {
	h.Helper()
	if err := h.bridges().Create(bridge.Config{Name: name}); err != nil {
		h.Fatal(err)
	}
}

func (h *host) bridges() *bridge.Host {
	h.Helper()
	b, err := bridge.Open(h.ns.Path())
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(b.Close)
	return b
}

// watch runs until the test ends, or stop is called. It is ready when watch returns.
func (h *host) watch(dial func(context.Context) (*libvirt.Conn, error), more ...func(*Config)) (stop func()) {
	h.Helper()
	ready := make(chan struct{})
	cfg := Config{NS: h.ns, Manager: h.m, Dial: dial, Ready: func() { close(ready) }, Report: h.report}
	for _, change := range more {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.Error(err)
		}
	})
	h.Cleanup(stop)
	select {
	case <-ready:
	case <-time.After(patience):
		h.Fatal("it does not get ready")
	}
	return stop
}

// patience bounds waits for things that happen at once on an idle machine.
const patience = 30 * time.Second

func (h *host) report(r Report) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Logf("%s/%s (%s): %s %v", r.Guest, r.NIC, r.Interface, r.Text, r.Err)
	h.reports, h.times = append(h.reports, r), append(h.times, time.Now())
}

// reported waits for a report that begins with that text, and returns it and its time.
func (h *host) reported(text, iface string) (r Report, at time.Time) {
	h.Helper()
	nstest.Eventually(h, patience, fmt.Sprintf("%q of %s is reported", text, iface), func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i := range h.reports {
			r, at = h.reports[i], h.times[i]
			if strings.HasPrefix(r.Text, text) && (iface == "" || r.Interface == iface) {
				return true
			}
		}
		return false
	})
	return r, at
}

// marker is the name of a tap, and with the prefix "br" of a bridge, that settled uses.
const marker = "mark"

// settled waits until the watcher has handled the kernel's events up to now: settled causes one
// more event and waits for the reaction. The watcher handles bridges that it learned of at the same
// time in any order, hence the second one.
func (h *host) settled() {
	h.Helper()
	for range 2 {
		h.ours(marker, "br"+marker, "")
		h.bridge("br" + marker)
		h.becomes(marker, "br"+marker, "")
		h.ip("link", "del", "br"+marker)
		h.ip("link", "del", marker)
	}
}

// quiet checks that there are no more than n reports once all events are handled.
func (h *host) quiet(n int) {
	h.Helper()
	h.settled()
	h.reportedSoFar(n)
}

func (h *host) reportedSoFar(n int) {
	h.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(h.reports), func(r Report) bool { return r.Interface == marker })
	if len(others) != n {
		h.Errorf("%d reports, want %d: %+v", len(others), n, others)
	}
}

func (h *host) forgetReports() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reports, h.times = nil, nil
}

func (h *host) ip(args ...string) {
	h.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + h.ns.Path(), "ip"}, args...)...).CombinedOutput()
	if err != nil {
		h.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// ours creates a tap without a holder, with the alias of a NIC.
func (h *host) ours(name, bridge, port string) {
	h.Helper()
	h.ip("tuntap", "add", name, "mode", "tap")
	h.ip("link", "set", "dev", name, "address", "fe:54:00:00:00:01") // else it is set back
	h.ip("link", "set", "dev", name, "alias",
		fmt.Sprintf(
			"vmnet vm=dead nic=%s type=tap source=%s port=%s mac=52:54:00:00:00:01 model=virtio-net-pci queues=1",
			name, bridge, port))
}

// portOf returns the bridge and the port settings of a tap; bridgeName is empty if it has no
// bridge.
func (h *host) portOf(name string) (bridgeName, port string) {
	h.Helper()
	l, err := h.nl.Link(name)
	if err != nil {
		h.Fatal(err)
	}
	if l.Master == 0 {
		return "", ""
	}
	br, err := h.nl.LinkByIndex(l.Master)
	if err != nil {
		h.Fatal(err)
	}
	cfg, err := h.bridges().ReadPort(br.Name, name)
	if err != nil {
		h.Fatal(err)
	}
	return br.Name, cfg.String()
}

// becomes waits until a tap is a port of that bridge with these settings.
func (h *host) becomes(name, bridgeName, port string) {
	h.Helper()
	nstest.Eventually(h, patience, fmt.Sprintf("%s is on %q and set to %q", name, bridgeName, port), func() bool {
		gotBridge, gotPort := h.portOf(name)
		return gotBridge == bridgeName && gotPort == port
	})
}

func TestLiveOursAreBackOnTheirBridge(t *testing.T) {
	h := newHost(t)
	h.ours("lost", "br0", "isolated")
	h.ours("off", "br0", "")
	h.ip("link", "del", "br0")
	h.bridge("br0")
	h.ours("young", "br0", "") // on no bridge on purpose
	h.watch(nil)
	h.becomes("lost", "br0", "isolated") // at the start
	h.becomes("off", "br0", "")

	h.ip("link", "set", "off", "nomaster")
	h.ip("link", "set", "br0", "mtu", "1400") // a changed bridge is not a new one
	h.quiet(2)
	h.ip("link", "del", "br0")
	h.ip("link", "add", "other", "type", "bridge")
	h.quiet(2)
	h.ip("link", "set", "other", "name", "br0")
	h.becomes("off", "br0", "")
	h.becomes("young", "br0", "")
	h.becomes("lost", "br0", "isolated")
}

// VLAN filtering is often enabled shortly after the bridge is created.
func TestLiveAPortIsTriedAgain(t *testing.T) {
	h := newHost(t)
	h.ours("tap", "br1", "vlan:10")
	h.watch(nil)
	h.bridge("br1")
	h.quiet(0)
	h.ip("link", "set", "dev", "tap", "address", "fe:54:00:00:00:01", "alias",
		"vmnet vm=dead nic=tap type=tap source=br1 port=hairpin mac=52:54:00:00:00:01 model=virtio-net-pci queues=1")
	h.becomes("tap", "br1", "hairpin")
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap returns the bytes of heap in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestLiveStorm: other programs create, change and delete a thousand links.
func TestLiveStorm(t *testing.T) {
	h := newHost(t)
	h.ours("lost", "br0", "")
	stop := h.watch(nil)
	storm := func() {
		var lines strings.Builder
		for i := range 1000 {
			kind := "ifb"
			if i%20 == 0 { // the kernel takes 16 ms to delete one
				kind = "bridge"
			}
			fmt.Fprintf(&lines, "link add d%d group 77 type %s\nlink set d%d mtu 1400\nlink set d%d mtu 1300\n",
				i, kind, i, i)
		}
		lines.WriteString("link del group 77\n")
		cmd := exec.Command("nsenter", "--net="+h.ns.Path(), "ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(lines.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	storm()
	before, start := heap(), cpuTime()
	storm()
	used := cpuTime() - start
	h.ip("link", "del", "br0")
	h.bridge("br0")
	h.becomes("lost", "br0", "")
	after := heap()
	t.Logf("5000 events cost %v of CPU, heap %d KiB before and %d KiB after", used, before>>10, after>>10)
	const most = 4 << 20
	if after > before+most {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	nstest.Eventually(t, patience, "it comes to rest", func() bool {
		for _, fn := range []string{"kernel/rtnl.(*Events).receive", "watch.(*bridges).work", "watch.(*mirrors).work"} {
			if nstest.Waiting("internal/"+fn) != 1 {
				return false
			}
		}
		return true
	})
	stop()
	h.reportedSoFar(1)
}
