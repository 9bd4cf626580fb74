package tapmgr_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

const (
	farAddr   = "10.8.0.1"
	farMAC    = "02:00:00:00:00:01"
	lowerAddr = "10.8.0.9"
)

// wire gives the host a parent device, eth0, whose cable ends at far0 in another netns, at a
// bridge with an address that guests can ping.
func (h *host) wire() {
	h.Helper()
	h.far = nstest.NewInUserNS(h)
	h.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0", "netns", h.far.Path())
	h.ip("link", "set", "eth0", "up")
	h.farIP("link", "add", "switch0", "address", farMAC, "type", "bridge")
	h.farIP("addr", "add", farAddr+"/24", "dev", "switch0")
	h.farIP("link", "set", "far0", "master", "switch0")
	h.farIP("link", "set", "far0", "up")
	h.farIP("link", "set", "switch0", "up")
}

func (h *host) farIP(args ...string) {
	h.Helper()
	h.ipIn(h.far, args...)
}

func (g *guest) lowerSpec(nic string, l nic.Lower) nic.Spec {
	spec := g.spec(nic)
	spec.Bridge = ""
	l.Kind, l.Device = vtap.Macvtap, "eth0"
	spec.Lower = &l
	return spec
}

// use makes the guest use a NIC with an address, and pings the outside through it.
func (h *host) use(g *guest, nic nic.NIC, addr string) {
	h.Helper()
	if err := g.Guest.UseNIC(h.context(30*time.Second), nic.MAC, addr); err != nil {
		h.Fatal(err)
	}
}

func (h *host) pings(g *guest, addr string) {
	h.Helper()
	if _, err := g.Guest.Ping(h.context(10*time.Second), addr); err != nil {
		h.Errorf("ping %s: %v", addr, err)
	}
}

// free demands that nothing is left on eth0: passthru is allowed only then.
func (h *host) free() {
	h.Helper()
	nstest.Eventually(h, 20*time.Second, "nothing is on eth0", func() bool {
		lower, err := h.nl.Link("eth0")
		if err != nil {
			h.Fatal(err)
		}
		d, err := macvlan.Create(h.nl, lower,
			vtap.Config{Kind: vtap.Macvtap, Name: "probe", Mode: "passthru", MAC: lower.MAC})
		if err != nil {
			return false
		}
		if err := d.Close(); err != nil {
			h.Error(err)
		}
		return true
	})
}

func TestLiveMacvtapOfABootedGuest(t *testing.T) {
	for _, c := range []testvm.Config{{Machine: "pc", CPUs: 2}, {Machine: "q35", SparePorts: 2, CPUs: 2}} {
		t.Run(c.Machine, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.wire()
			g := h.booted(c)
			spec := g.lowerSpec("net0", nic.Lower{})
			spec.Queues = 2
			found := h.attach(spec)
			if found.Type != "macvtap" || found.Mode != "bridge" || found.Source != "eth0" || found.State != nic.Up {
				t.Errorf("attached %+v", found)
			}
			h.use(g, found, "10.8.0.2/24")
			h.pings(g, farAddr)
			h.listed2(g, found)
			if res, err := h.Attach(h.context(10*time.Second), spec); err != nil || res.Changed {
				t.Errorf("the same again: %+v, %v", res, err)
			}
			spec.Lower.Mode = "private"
			if _, err := h.Attach(h.context(10*time.Second), spec); !errors.Is(err, nic.ErrExist) ||
				!strings.Contains(err.Error(), "mode is bridge, asked for private") {
				t.Errorf("another mode: %v", err)
			}
			if got := h.check(); len(got) != 0 {
				t.Errorf("check: %+v", got)
			}
			h.reconciled()
			h.detach(g, "net0")
			h.nothingLeft(g, "net0")
			h.free()

			h.attach(g.lowerSpec("net1", nic.Lower{}))
			if err := g.Kill(); err != nil {
				t.Fatal(err)
			}
			h.free()
		})
	}
}

func TestLiveLowerNamedByItsAltname(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.ip("link", "property", "add", "dev", "eth0", "altname", "uplink")
	g := h.empty()
	spec := g.lowerSpec("net0", nic.Lower{})
	spec.Lower.Device = "uplink"
	if nic := h.attach(spec); nic.Source != "eth0" {
		t.Errorf("attached %+v", nic)
	}
	if res, err := h.Attach(h.context(10*time.Second), spec); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
}

func (h *host) listed2(g *guest, found nic.NIC) {
	h.Helper()
	got, err := h.List(g.name)
	found.PID = g.Pid()
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], found) {
		h.Errorf("list %+v, %v: want %+v", got, err, found)
	}
	details, err := h.Show(h.context(10*time.Second), g.name)
	if err != nil || len(details) != 1 {
		h.Fatalf("show %+v, %v", details, err)
	}
	d := details[0]
	if len(d.Holders) != 1 || len(d.Holders[0].FDs) != 2 || d.Lower != "eth0" || d.RxFilter != nic.RxAllMulti ||
		d.Guest == nil || !d.Guest.Plugged || d.Counters.TxPackets == 0 || d.HostMAC != found.MAC {
		h.Errorf("show %+v", d)
	}
}

// TestLiveMacvtapFaults fails, and kills the attaching process, at every step.
func TestLiveMacvtapFaults(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.empty()
	spec := g.lowerSpec("net0", nic.Lower{})
	spec.Queues = 2
	for _, name := range h.stepNames(spec) {
		for _, after := range []bool{false, true} {
			if strings.HasPrefix(name, "device_add") || name == "close" || name == "verify" {
				break // a standing guest gives no device back; the booted one below does
			}
			h.at(name, func(do func() error) error {
				if after {
					if err := do(); err != nil {
						return err
					}
				}
				return errFault
			})
			if _, err := h.Attach(h.context(20*time.Second), spec); !errors.Is(err, errFault) ||
				strings.Contains(err.Error(), "undo") {
				t.Errorf("%s, done %v: got %v, want only the fault", name, after, err)
			}
			h.Run = nil
			h.nothingLeft(g, "net0")
			h.free()

			cmd := h.command(order{Spec: spec, KillAt: name, After: after})
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s: %v: %s", name, err, out)
			}
			h.settled()
			h.nothingLeft(g, "net0")
			h.free()
		}
	}
}

// settled reconciles and demands that every action succeeded.
func (h *host) settled() {
	h.Helper()
	actions, err := h.Reconcile(h.context(20*time.Second), false)
	if err != nil {
		h.Fatal(err)
	}
	for _, a := range actions {
		if a.Error != "" {
			h.Errorf("reconcile: %+v", a)
		}
	}
}

func TestLiveMacvtapKilledLate(t *testing.T) {
	for _, machine := range []testvm.Config{
		{Machine: "pc", Paused: true},
		{Machine: "q35", SparePorts: 1, Paused: true},
	} {
		t.Run(machine.Machine, func(t *testing.T) { killedLate(t, machine) })
	}
}

func killedLate(t *testing.T, machine testvm.Config) {
	h := newHost(t)
	h.wire()
	for _, at := range []string{"device_add vmnet-net0", "close", "verify"} {
		g := h.booted(machine)
		cmd := h.command(order{Spec: g.lowerSpec("net0", nic.Lower{}), KillAt: at, After: true})
		if err := cmd.Run(); err == nil {
			t.Fatal("it was not killed")
		}
		h.settled()
		if list, err := h.List(g.name); err != nil || len(list) != 1 || list[0].State != nic.Up {
			t.Errorf("killed after %s: list %+v, %v: want it up", at, list, err)
		}
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		h.free()
	}
}

func TestLiveGuestsFindEachOtherByIPv6OverMacvtap(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.wire()
	a, b := h.booted(testvm.Config{}), h.booted(testvm.Config{Name: "P3"})
	h.use(a, h.attach(a.lowerSpec("net0", nic.Lower{})), "fd00:8::2/64")
	h.use(b, h.attach(b.lowerSpec("net0", nic.Lower{})), "fd00:8::3/64")
	h.pings(a, "fd00:8::3") // by neighbour discovery, which is multicast

	h.detach(b, "net0")
	h.use(b, h.attach(b.lowerSpec("net0", nic.Lower{RxFilter: nic.RxNone})), "fd00:8::4/64")
	if _, err := a.Guest.Ping(h.context(4*time.Second), "fd00:8::4"); err == nil {
		t.Error("with rx filter none the guest was found")
	}
}

// TestLiveMulticastReachesTheGuest sends to mDNS's group. The guest takes in all that comes,
// so that only the macvtap's filter is seen.
func TestLiveMulticastReachesTheGuest(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.booted(testvm.Config{})
	for filter, want := range map[string]bool{nic.RxAllMulti: true, nic.RxNone: false} {
		nic := h.attach(g.lowerSpec("net0", nic.Lower{RxFilter: filter}))
		h.use(g, nic, "10.8.0.2/24")
		h.pings(g, farAddr)
		ctx := h.context(20 * time.Second)
		link, err := g.Guest.WaitNIC(ctx, nic.MAC)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Guest.Exec(ctx, "ip", "link", "set", link.Name, "promisc", "on"); err != nil {
			t.Fatal(err)
		}
		before := h.received(g, link.Name)
		h.sendMulticast(50)
		if want {
			nstest.Eventually(t, 20*time.Second, "with rx filter "+filter+" all frames come", func() bool {
				return h.received(g, link.Name)-before >= 50
			})
		} else {
			h.pings(g, farAddr) // what answers has sent the frames before
			if got := h.received(g, link.Name) - before; got >= 50 {
				t.Errorf("rx filter %s: %d frames came, want none of 50 to the group", filter, got)
			}
		}
		h.detach(g, "net0")
	}
}

func (h *host) received(g *guest, link string) uint64 {
	h.Helper()
	links, err := g.Guest.Links(h.context(10 * time.Second))
	if err != nil {
		h.Fatal(err)
	}
	for _, l := range links {
		if l.Name == link {
			return l.Counters.RxPackets
		}
	}
	h.Fatalf("no link %s", link)
	return 0
}

// sendMulticast sends n frames to groups that no guest has joined, in turn. They are eight, since a
// macvlan's filter is a hash of 8 bits with a random seed (mc_hash in drivers/net/macvlan.c): now
// and then one of the groups is like one that the guest has joined.
func (h *host) sendMulticast(n int) {
	h.Helper()
	err := h.far.Do(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(farAddr)})
		if err != nil {
			return err
		}
		defer c.Close()
		for i := range n {
			group := net.IPv4(224, byte(i%8), 0, 251-byte(i%8)*31)
			if _, err := c.WriteToUDP([]byte("mdns"), &net.UDPAddr{IP: group, Port: 5353}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		h.Fatal(err)
	}
}

// TestLiveMacvtapReachability goes through what each mode lets two guests, the parent device, and a
// peer outside say to each other, without and with a switch that reflects (VEPA).
func TestLiveMacvtapReachability(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.wire()
	h.ip("addr", "add", lowerAddr+"/24", "dev", "eth0")
	const hostAddr = "10.11.0.1" // of the host's macvlan, which is in mode bridge
	if _, _, err := h.SetHostAccess(h.context(10*time.Second), "eth0",
		true, []netip.Prefix{netip.MustParsePrefix(hostAddr + "/24")}); err != nil {
		t.Fatal(err)
	}
	a, b := h.booted(testvm.Config{}), h.booted(testvm.Config{Name: "P3"})
	for _, mode := range []string{"bridge", "vepa", "private"} {
		for _, reflect := range []bool{false, true} {
			h.reflective(reflect)
			// else the host may still ask a guest in mode private, who thereby learns the host's
			// MAC
			h.ip("neigh", "flush", "all")
			h.use(a, h.attach(a.lowerSpec("net0", nic.Lower{Mode: mode})), "10.8.0.2/24")
			h.use(b, h.attach(b.lowerSpec("net0", nic.Lower{Mode: mode})), "10.8.0.3/24")
			h.use(a, h.listedOne(a), "10.11.0.2/24")
			for addr, want := range map[string]bool{
				hostAddr:   mode == "bridge" || mode == "vepa" && reflect,
				farAddr:    true,
				"10.8.0.3": mode == "bridge" || mode == "vepa" && reflect,
				lowerAddr:  reflect && mode != "private", // only by way of the switch
			} {
				timeout := 10 * time.Second
				if !want {
					timeout = time.Second
				}
				_, err := a.Guest.Ping(h.context(timeout), addr)
				if (err == nil) != want {
					t.Errorf("mode %s, reflective switch %v: %s answered: %v, want %v (%v)",
						mode, reflect, addr, err == nil, want, err)
				}
			}
			h.detach(a, "net0")
			h.detach(b, "net0")
		}
	}
}

func (h *host) listedOne(g *guest) nic.NIC {
	h.Helper()
	nics, err := h.List(g.name)
	if err != nil || len(nics) != 1 {
		h.Fatalf("list %+v, %v", nics, err)
	}
	return nics[0]
}

// reflective makes the switch send frames back to where they came from, or not, as one of
// IEEE 802.1Qbg does.
func (h *host) reflective(on bool) {
	h.Helper()
	state := "off"
	if on {
		state = "on"
	}
	h.farIP("link", "set", "far0", "type", "bridge_slave", "hairpin", state)
}

func TestLivePassthruHasTheLowersAddress(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.wire()
	g, other := h.booted(testvm.Config{}), h.empty()
	lower, err := h.nl.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	found := h.attach(g.lowerSpec("net0", nic.Lower{Mode: "passthru"}))
	if found.MAC != lower.MAC.String() {
		t.Errorf("MAC %s, want the lower's %s", found.MAC, lower.MAC)
	}
	h.use(g, found, "10.8.0.2/24")
	h.pings(g, farAddr)
	_, err = h.Attach(h.context(10*time.Second), other.lowerSpec("net0", nic.Lower{}))
	if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EBUSY) || !strings.Contains(fmt.Sprint(err), g.name) {
		t.Errorf("beside passthru: got %v, want the guest that has it named", err)
	}
}

func TestLivePassthruMayLeaveTheLowerUnpromiscuous(t *testing.T) {
	h := newHost(t)
	h.wire()
	for noPromisc, want := range map[bool]string{false: "promiscuity 1", true: "promiscuity 0"} {
		g := h.empty()
		h.attach(g.lowerSpec("net0", nic.Lower{Mode: "passthru", NoPromisc: noPromisc}))
		var out []byte
		err := h.ns.Do(func() (err error) {
			out, err = exec.Command("ip", "-d", "link", "show", "eth0").Output()
			return err
		})
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("nopromisc %v: %v: %s: want %s", noPromisc, err, out, want)
		}
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		h.free()
	}
}

func TestLiveSourceModeHearsOnlyItsSources(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.wire()
	g := h.booted(testvm.Config{})
	sources := macs(t, farMAC)
	h.use(g, h.attach(g.lowerSpec("net0", nic.Lower{Mode: "source", Sources: sources})), "10.8.0.2/24")
	h.pings(g, farAddr)
	h.farIP("link", "set", "switch0", "address", "02:00:00:00:00:77")
	err := h.far.Do(func() error {
		_, err := traffic.SendPing(h.context(2*time.Second),
			traffic.Ping{Addr: "10.8.0.2", Count: 1, Timeout: time.Second})
		return err
	})
	if err == nil {
		t.Error("a sender that is no source was heard")
	}
}

func TestLiveMacvtapBesideABridge(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.ip("link", "set", "eth0", "master", "br0")
	g := h.empty()
	_, err := h.Attach(h.context(10*time.Second), g.lowerSpec("net0", nic.Lower{}))
	if !errors.Is(err, nic.ErrLink) || !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "port of br0") {
		t.Errorf("got %v, want br0 named", err)
	}
	h.nothingLeft(g, "net0")
}
