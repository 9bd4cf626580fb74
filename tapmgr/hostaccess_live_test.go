package tapmgr_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

// hostOn switches host access on and demands that it is there then.
func (h *host) hostOn(changed bool, addrs ...string) nic.HostAccess {
	h.Helper()
	got, did, err := h.SetHostAccess(h.context(10*time.Second), "eth0", true, hostAddrs(addrs...))
	if err != nil || did != changed || got.Interface != "eth0-host" || got.State != nic.Up {
		h.Fatalf("on: %+v, changed %v, %v", got, did, err)
	}
	return got
}

func (h *host) hostOff(changed bool) {
	h.Helper()
	if _, did, err := h.SetHostAccess(h.context(10*time.Second), "eth0", false, nil); err != nil || did != changed {
		h.Fatalf("off: changed %v, %v; want changed %v", did, err, changed)
	}
	h.gone("eth0-host")
}

func hostAddrs(texts ...string) (addrs []netip.Prefix) {
	for _, s := range texts {
		addrs = append(addrs, netip.MustParsePrefix(s))
	}
	return addrs
}

// silent demands that nothing answers the guest from addr.
func (h *host) silent(g *guest, addr string) {
	h.Helper()
	if _, err := g.Guest.Ping(h.context(time.Second), addr); err == nil {
		h.Errorf("%s answered", addr)
	}
}

// hostPings pings from the host.
func (h *host) hostPings(addr string) error {
	return h.ns.Do(func() error {
		_, err := traffic.SendPing(h.context(20*time.Second),
			traffic.Ping{Addr: addr, UntilFirst: true, Count: 3, Timeout: time.Second})
		return err
	})
}

func TestLiveHostAccessLetsHostAndGuestsReachEachOther(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.wire()
	h.ip("addr", "add", lowerAddr+"/24", "dev", "eth0")
	g := h.booted(testvm.Config{})
	nic := h.attach(g.lowerSpec("net0", nic.Lower{}))
	h.use(g, nic, "10.8.0.2/24")
	h.use(g, nic, "10.9.0.2/24")
	h.use(g, nic, "fd00:9::2/64")
	h.pings(g, farAddr)
	h.silent(g, lowerAddr)
	h.silent(g, "10.9.0.1")

	h.hostOn(true, "10.9.0.1/24", "fd00:9::1/64")
	h.pings(g, "10.9.0.1")
	h.pings(g, "fd00:9::1")
	for _, addr := range []string{"10.9.0.2", "fd00:9::2"} {
		if err := h.hostPings(addr); err != nil {
			t.Errorf("the host to the guest: %v", err)
		}
	}
	h.pings(g, farAddr)

	info, err := h.ShowParent(t.Context(), "eth0")
	if err != nil || info.HostAccess == nil || len(info.NICs) != 1 || info.NICs[0].VM != g.name {
		t.Errorf("show %+v, %v", info, err)
	}
	list, err := h.ListAll(t.Context(), "")
	if err != nil || len(list) != 2 || list[0].VM != g.name || list[1].VM != "" || list[1].Type != "macvlan" ||
		list[1].Source != "eth0" {
		t.Errorf("list %+v, %v: want the guest's NIC, then the host access", list, err)
	}
	if list, err := h.List(""); err != nil || len(list) != 1 {
		t.Errorf("list of guests' NICs %+v, %v", list, err)
	}

	h.detach(g, "net0") // it is no guest's, so it stays
	h.reconciled()
	h.hostOn(false)
	h.hostOff(true)
	h.hostOff(false)
	h.free()
}

// TestLiveHostAccessInTheLowersNetwork proves what the notice says, and that its cure helps.
func TestLiveHostAccessInTheLowersNetwork(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.ip("addr", "add", lowerAddr+"/24", "dev", "eth0")
	g := h.booted(testvm.Config{})
	h.use(g, h.attach(g.lowerSpec("net0", nic.Lower{})), "10.8.0.2/24")
	if got := h.hostOn(true, "10.8.0.10/24"); len(got.Notices) != 1 ||
		!strings.Contains(got.Notices[0], "ip route add GUEST dev eth0-host") {
		t.Errorf("notices %q", got.Notices)
	}
	h.silent(g, "10.8.0.10")
	h.ip("route", "add", "10.8.0.2", "dev", "eth0-host")
	h.pings(g, "10.8.0.10")
	if err := h.hostPings("10.8.0.2"); err != nil {
		t.Error(err)
	}
}

func TestHostAccessAgain(t *testing.T) {
	h := newUserHost(t)
	h.wire()
	h.ip("link", "set", "eth0", "mtu", "1400", "alias", "mine")
	first := h.hostOn(true, "10.9.0.1/24", "10.9.0.1/24")
	if first.MTU != 1400 || !strings.HasPrefix(first.MAC, "02:") || len(first.Added) != 1 {
		t.Errorf("made %+v", first)
	}
	h.hostOn(false, "10.9.0.1/24")
	h.hostOn(false)
	if got := h.hostOn(true, "10.9.0.1/24", "10.9.1.1/24"); !slices.Equal(got.Added, hostAddrs("10.9.1.1/24")) ||
		len(got.Addresses) != 2 {
		t.Errorf("added %v, has %v", got.Added, got.Addresses)
	}
	h.ip("link", "set", "eth0-host", "down")
	if got := h.hostOn(true); len(got.Addresses) != 2 {
		t.Errorf("up again: %+v", got)
	}
	h.ip("link", "set", "eth0", "down")
	h.ip("link", "set", "eth0", "name", "lan0")
	if all, err := h.HostAccesses(); err != nil || len(all) != 1 || all[0].Parent != "lan0" {
		t.Errorf("after the lower was renamed: %+v, %v", all, err)
	}
	h.ip("link", "set", "lan0", "name", "eth0")
	h.hostOff(true)
	h.ip("link", "set", "eth0", "up")
	if again := h.hostOn(true); again.MAC != first.MAC {
		t.Errorf("MAC %s, was %s", again.MAC, first.MAC)
	}
	h.ip("link", "set", "eth0", "netns", h.far.Path()) // what sits on it stays behind
	if _, did, err := h.SetHostAccess(h.context(10*time.Second), "eth0", false, nil); err != nil || !did {
		t.Errorf("off without the lower: %v, %v", did, err)
	}
	h.gone("eth0-host")
}

// TestHostAccessFaults fails at every step, and demands what was there before.
func TestHostAccessFaults(t *testing.T) {
	h := newUserHost(t)
	h.wire()
	addrs := []string{"10.9.0.1/24", "10.9.1.1/24"}
	steps := []string{"macvlan", "alias", "no router", "address " + addrs[0], "address " + addrs[1], "up"}
	h.faults(steps, addrs, func(string) { h.gone("eth0-host") })

	h.hostOn(true)
	h.ip("link", "set", "eth0-host", "down")
	h.faults(steps[3:], addrs, func(name string) {
		all, err := h.HostAccesses()
		if err != nil || len(all) != 1 || len(all[0].Addresses) != 0 || all[0].State != nic.Down {
			t.Errorf("after %s: %+v, %v: want it down and without addresses", name, all, err)
		}
	})
}

func (h *host) faults(steps, addrs []string, then func(name string)) {
	h.Helper()
	defer func() { h.Run = nil }()
	for _, name := range steps {
		for _, after := range []bool{false, true} {
			reached := false
			h.at(name, func(do func() error) error {
				reached = true
				if after {
					if err := do(); err != nil {
						return err
					}
				}
				return errFault
			})
			_, _, err := h.SetHostAccess(h.context(10*time.Second), "eth0", true, hostAddrs(addrs...))
			if !reached || !errors.Is(err, errFault) || strings.Contains(err.Error(), "undo") {
				h.Errorf("%s, done %v: got %v, want only the fault", name, after, err)
			}
			then(name)
		}
	}
}

// TestHostAccessCutShort leaves what a vmnet leaves that is killed at any step.
func TestHostAccessCutShort(t *testing.T) {
	h := newUserHost(t)
	h.wire()
	for n := 1; n <= 5; n++ {
		h.Run = func(ctx context.Context, list []step.Step) error {
			for _, s := range list[:n] {
				if err := s.Do(ctx); err != nil {
					return err
				}
			}
			return errFault
		}
		addrs := hostAddrs("10.9.0.1/24")
		if _, _, err := h.SetHostAccess(h.context(10*time.Second), "eth0", true, addrs); !errors.Is(err, errFault) {
			t.Fatalf("%d steps: %v", n, err)
		}
		h.Run = nil
		if all, err := h.HostAccesses(); err != nil || len(all) != 1 || n == 1 && all[0].State != nic.Incomplete {
			t.Errorf("%d steps: %+v, %v", n, all, err)
		}
		if n%2 == 1 { // else what was cut short is removed as it is
			if got := h.hostOn(n < 5, "10.9.0.1/24"); len(got.Addresses) != 1 {
				t.Errorf("%d steps: completed to %+v", n, got)
			}
			h.hostOn(false, "10.9.0.1/24")
		}
		h.hostOff(true)
	}
}

func TestHostAccessByTwoAtOnce(t *testing.T) {
	h := newUserHost(t)
	h.wire()
	var all sync.WaitGroup
	for range 4 {
		m, err := tapmgr.Open(h.ns.Path())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		all.Go(func() {
			if _, _, err := m.SetHostAccess(h.context(10*time.Second), "eth0",
				true, hostAddrs("10.9.0.1/24")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	h.hostOn(false, "10.9.0.1/24")
}

func TestLiveHostAccessRefused(t *testing.T) {
	h := newHost(t)
	h.wire()
	refused := func(lower string, want error, texts ...string) {
		t.Helper()
		_, _, err := h.SetHostAccess(h.context(10*time.Second), lower, true, nil)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", lower, err, want)
		}
		for _, text := range texts {
			if !strings.Contains(fmt.Sprint(err), text) {
				t.Errorf("%s: got %v, want it to say %q", lower, err, text)
			}
		}
	}
	refused("nosuch", fs.ErrNotExist, "lower nosuch")
	refused("", nic.ErrInvalid)
	refused("lo", nil, "not an Ethernet device")
	if _, _, err := h.SetHostAccess(h.context(time.Second), "nosuch", false, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("off without the lower: %v", err)
	}
	if _, _, err := h.SetHostAccess(h.context(time.Second), "eth0", false, hostAddrs("10.9.0.1/24")); !errors.Is(err,
		nic.ErrInvalid) {
		t.Errorf("off with an address: %v", err)
	}

	h.ip("link", "add", "eth0-host", "link", "eth0", "type", "macvlan", "mode", "bridge")
	refused("eth0", fs.ErrExist, "eth0-host", "macvlan")
	refused("eth0-host", nil, "is a macvlan itself")
	if all, err := h.HostAccesses(); err != nil || len(all) != 0 {
		t.Errorf("somebody else's macvlan is taken for ours: %+v, %v", all, err)
	}
	h.ip("link", "del", "eth0-host")

	g := h.empty()
	h.attach(g.lowerSpec("net0", nic.Lower{Mode: "passthru"}))
	refused("eth0", syscall.EINVAL, "passthru", g.name+"/net0")
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	<-g.Done()
	h.hostOn(true) // though the kernel may take a while to remove the passthru device
	h.hostOff(true)

	h.ip("link", "set", "eth0", "down")
	refused("eth0", syscall.ENETDOWN, "ip link set eth0 up")
	h.ip("link", "set", "eth0", "up", "master", "br0")
	refused("eth0", syscall.EBUSY, "port of br0")
	h.gone("eth0-host")
}
