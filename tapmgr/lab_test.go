package tapmgr_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/lab"
)

// TestLabGuest has one guest for all that needs one: QEMU runs in a lab host as well, slowly.
func TestLabGuest(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	start := time.Now()
	g := h.booted(testvm.Config{})
	t.Logf("a tiny guest booted in %s", time.Since(start).Round(time.Second))
	out, err := g.Guest.Exec(t.Context(), "uname", "-r")
	if err != nil || !strings.Contains(out, "cloud") {
		t.Errorf("uname: %q, %v", out, err)
	}
	t.Run("vhost on a bridge", func(t *testing.T) { h.TB = t; h.vhostOnABridge(g) })
	t.Run("vhost on a macvtap", func(t *testing.T) { h.TB = t; h.vhostOnAMacvtap(g) })
	for _, mode := range []string{"l2", "l3"} {
		t.Run("ipvtap "+mode, func(t *testing.T) { h.TB = t; h.ipvtap(g, mode) })
	}
	t.Run("killed", func(t *testing.T) { h.TB = t; h.killedWithVhost(g) })
	h.TB = t
}

func (h *host) vhostOnABridge(g *guest) {
	spec := g.spec("net0")
	spec.Vhost, spec.Queues = nic.VhostOn, 2
	nic := h.attach(spec)
	h.reach(g, nic, guestAddr)
	if !slices.Contains(threads(h), fmt.Sprintf("vhost-%d", g.Pid())) {
		h.Errorf("no kernel thread vhost-%d", g.Pid())
	}
	details, err := h.Show(h.context(20*time.Second), g.name)
	if err != nil || len(details) != 1 || len(details[0].VhostFDs) != 2 || len(details[0].Holders[0].FDs) != 2 ||
		nic.Vhost != "on" {
		h.Errorf("show %+v, %v: want 2 vhost fds and 2 queues", details, err)
	}
	h.tcpBothWays(g)
	h.detach(g, "net0")
	h.nothingLeft(g, "net0")
}

// threads lists the names of all kernel threads and processes.
func threads(h *host) (names []string) {
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		h.Fatal(err)
	}
	for _, f := range files {
		if name, err := os.ReadFile(f); err == nil {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}

func (h *host) tcpBothWays(g *guest) {
	h.Helper()
	ctx := h.context(20 * time.Second)
	if res, err := g.Guest.TCPSend(ctx, h.tcpSink(), 128<<10); err != nil {
		h.Errorf("guest to host: %+v, %v", res, err)
	}
	served, err := g.Guest.TCPServe(ctx, guestAddr+":0")
	if err == nil {
		err = h.tcpSend(ctx, served, 128<<10)
	}
	if err != nil {
		h.Errorf("host to guest: %v", err)
	}
}

func (h *host) vhostOnAMacvtap(g *guest) {
	spec := g.lowerSpec("net0", nic.Lower{})
	spec.Vhost = nic.VhostOn
	nic := h.attach(spec)
	h.use(g, nic, "10.8.0.2/24")
	h.pings(g, farAddr)
	h.detach(g, "net0")
	h.nothingLeft(g, "net0")
	h.free()
}

// ipvtap proves that the kernel delivers by the addresses on the device, and that they are not
// the host's own.
func (h *host) ipvtap(g *guest, mode string) {
	spec := g.lowerSpec("net0", nic.Lower{Mode: mode, Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.4/24")}})
	spec.Lower.Kind = vtap.IPVtap
	nic := h.attach(spec)
	lower, err := h.nl.Link("eth0")
	if err != nil || nic.MAC != lower.MAC.String() || nic.Type != "ipvtap" || nic.Mode != mode {
		h.Fatalf("attached %+v, %v", nic, err)
	}
	h.use(g, nic, "10.8.0.4/24")
	if mode == "l3" {
		h.routeFor(g, nic)
	}
	h.pings(g, farAddr)
	local, err := os.ReadFile("/proc/net/fib_trie")
	if err != nil || strings.Contains(string(local), "10.8.0.4") {
		h.Errorf("the guest's address is the host's (%v)", err)
	}
	if got := h.check(); len(got) != 0 {
		h.Errorf("check: %+v", got)
	}
	h.detach(g, "net0")
	h.nothingLeft(g, "net0")
}

// routeFor does what l3 leaves to people: the host routes for the guest, by the route that
// its own address on the parent device gives, and nobody asks or answers ARP for the guest.
func (h *host) routeFor(g *guest, nic nic.NIC) {
	h.Helper()
	if lower, err := h.nl.Link("eth0"); err != nil {
		h.Fatal(err)
	} else if addrs, err := h.nl.Addrs(lower.Index); err != nil || len(addrs) == 0 {
		h.ip("addr", "add", lowerAddr+"/24", "dev", "eth0")
	}
	h.farIP("neigh", "replace", "10.8.0.4", "lladdr", nic.MAC, "dev", "switch0")
	ctx := h.context(10 * time.Second)
	link, err := g.Guest.WaitNIC(ctx, nic.MAC)
	if err == nil {
		_, err = g.Guest.Exec(ctx, "ip", "link", "set", link.Name, "arp", "off")
	}
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) killedWithVhost(g *guest) {
	spec := g.lowerSpec("net1", nic.Lower{})
	spec.Vhost = nic.VhostOn
	h.attach(spec)
	spec = g.spec("net0")
	spec.Vhost = nic.VhostOn
	nic := h.attach(spec)
	if err := g.Kill(); err != nil {
		h.Fatal(err)
	}
	h.gone(nic.Interface)
	h.free()
}

// TestLabKilledWithVhost kills QEMU, and the attaching process and then QEMU, under taps and
// macvtaps with vhost.
func TestLabKilledWithVhost(t *testing.T) {
	lab.Inside(t)
	for _, c := range []testvm.Config{{Machine: "pc", Paused: true}, {Machine: "q35", SparePorts: 2, Paused: true}} {
		t.Run(c.Machine, func(t *testing.T) {
			h := newHost(t)
			h.wire()
			for _, killed := range []bool{false, true} {
				g := h.booted(c)
				tap, macvtap := g.spec("net0"), g.lowerSpec("net1", nic.Lower{})
				tap.Vhost, macvtap.Vhost = nic.VhostOn, nic.VhostOn
				for _, spec := range []nic.Spec{tap, macvtap} {
					if !killed {
						h.attach(spec)
					} else if err := h.command(order{Spec: spec, KillAt: "close", After: true}).Run(); err == nil {
						t.Fatal("it was not killed")
					}
				}
				if n := vhostFDs(g); n != 2 {
					t.Errorf("QEMU has %d vhost fds, want 2", n)
				}
				if err := g.Kill(); err != nil {
					t.Fatal(err)
				}
				h.gone(mustName(g))
				h.free()
			}
		})
	}
}

// TestLabFaultsWithVhost fails each step while there are vhost fds to close.
func TestLabFaultsWithVhost(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	g := h.empty()
	spec := g.twoQueues("net0")
	spec.Vhost = nic.VhostOn
	for _, name := range h.stepNames(spec) {
		if strings.HasPrefix(name, "device_add") {
			break // a standing guest gives no device back
		}
		h.at(name, func(do func() error) error {
			if err := do(); err != nil {
				return err
			}
			return errFault
		})
		if _, err := h.Attach(h.context(30*time.Second), spec); !errors.Is(err, errFault) ||
			strings.Contains(err.Error(), "undo") {
			t.Errorf("%s: got %v, want only the fault", name, err)
		}
		h.Run = nil
		h.nothingLeft(g, "net0")
		cmd := h.command(order{Spec: spec, KillAt: name, After: true})
		if err := cmd.Run(); err == nil {
			t.Fatalf("%s: it was not killed", name)
		}
		h.settled()
		h.nothingLeft(g, "net0")
		if fds := vhostFDs(g); fds != 0 {
			t.Errorf("killed at %s: QEMU keeps %d vhost fds", name, fds)
		}
	}
	h.attach(spec)
}

func vhostFDs(g *guest) (n int) {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.Pid()))
	for _, e := range entries {
		if target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", g.Pid(), e.Name())); target == "/dev/vhost-net" {
			n++
		}
	}
	return n
}

func TestLabVhostNotToBeHad(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	g := h.empty()
	try := func(v nic.Vhost) (nic.Result, error) {
		spec := g.spec("net0")
		spec.Vhost = v
		return h.Attach(h.context(20*time.Second), spec)
	}
	lab.WithoutModule(t, "vhost_net")
	if _, err := try(nic.VhostOn); !errors.Is(err, nic.ErrLink) ||
		!strings.Contains(err.Error(), "modprobe vhost_net") {
		t.Errorf("not loaded: got %v", err)
	}
	h.nothingLeft(g, "net0")
	res, err := try(nic.VhostAuto)
	if err != nil || res.NIC.Vhost != "off" || !strings.Contains(strings.Join(res.Notices, " "), "modprobe vhost_net") {
		t.Errorf("auto: %+v, %v: want a notice that says why it is off", res, err)
	}
}

func TestLabVhostWithoutPermission(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	g := h.empty()
	spec := g.spec("net0")
	spec.Vhost, spec.PID = nic.VhostOn, g.Pid()
	cmd := h.command(order{Spec: spec})
	const capSysPtrace, capSysAdmin, capNetAdmin = 19, 21, 12
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.SysProcAttr.AmbientCaps = []uintptr{capSysPtrace, capSysAdmin, capNetAdmin}
	if err := os.Chmod(g.QMP, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(g.QMP), 0o755); err != nil {
		t.Fatal(err)
	}
	h.failsToAttach(cmd, g, "give this user access")
}

func TestLabVLANs(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1", VLANFiltering: true})
	g := h.empty()
	for i, port := range []brport.Settings{
		{VLAN: 10},
		{Trunk: []brport.VLANRange{{First: 2, Last: 5}, {First: 7, Last: 7}}, Native: 1, Isolated: true},
	} {
		spec := g.spec(fmt.Sprintf("net%d", i))
		spec.Bridge, spec.Port = "br1", port
		nic := h.attach(spec)
		if nic.Port != port.String() {
			t.Errorf("attached %+v, want %s", nic, port)
		}
		if got := h.check(); len(got) != 0 {
			t.Errorf("check: %+v", got)
		}
		// Its bridge is deleted and made again.
		if err := h.deleteBridge("br1"); err != nil {
			t.Fatal(err)
		}
		h.bridge(bridge.Config{Name: "br1", VLANFiltering: true})
		h.settled()
		if got := h.check(); len(got) != 0 {
			t.Errorf("check after the bridge came back: %+v", got)
		}
	}
}

// TestLabNoDefaultVLAN: a bridge that puts its ports into no VLAN takes a NIC only with one of its
// own, and check tells of a NIC whose bridge has lost its default VLAN.
func TestLabNoDefaultVLAN(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1", VLANFiltering: true})
	g := h.empty()
	spec := g.spec("net0")
	spec.Bridge = "br1"
	h.attach(spec)
	if got := h.check(); len(got) != 0 {
		t.Errorf("check %+v", got)
	}
	h.ip("link", "set", "br1", "type", "bridge", "vlan_default_pvid", "0")
	if got := h.check(); len(got) != 1 || got[0].What != "VLAN" || got[0].MendedBy != nic.MendDetach ||
		!strings.Contains(got[0].Mend, "--vlan") {
		t.Errorf("check %+v", got)
	}
	spec.NIC = "net1"
	const cure = "vlan_default_pvid 0), so a port without one passes no frames (name one with --vlan"
	if _, err := h.Attach(h.context(20*time.Second), spec); !errors.Is(err, nic.ErrLink) ||
		!strings.Contains(err.Error(), cure) {
		t.Errorf("attach: %v", err)
	}
	launched := spec
	launched.VM, launched.Queues = "other", 1
	if _, err := h.Host().PlanLaunch(t.Context(), launched); err == nil || !strings.Contains(err.Error(), cure) {
		t.Errorf("launch: %v", err)
	}
	spec.Port = brport.Settings{VLAN: 10}
	if nic := h.attach(spec); nic.State != "forwarding" {
		t.Errorf("attached %+v", nic)
	}
	spec.NIC, spec.Port = "net2", brport.Settings{Trunk: []brport.VLANRange{{First: 2, Last: 3}}}
	h.attach(spec)
	if got := h.check(); len(got) != 1 {
		t.Errorf("check %+v", got)
	}
}

func TestLabWiFiTakesNoMacvtap(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	wlan := h.wifi()
	g := h.empty()
	spec := g.lowerSpec("net0", nic.Lower{})
	spec.Lower.Device = wlan
	_, err := h.Attach(h.context(20*time.Second), spec)
	if !errors.Is(err, nic.ErrLink) || !strings.Contains(err.Error(), "--ipvtap") {
		t.Errorf("got %v, want ipvtap to be suggested", err)
	}
	spec.Lower = &nic.Lower{
		Kind: vtap.IPVtap, Device: wlan,
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.4/24")},
	}
	if nic := h.attach(spec); nic.Type != "ipvtap" {
		t.Errorf("attached %+v", nic)
	}
}

// wifi moves a simulated Wi-Fi device into the host's netns, brings it up and returns its name.
func (h *host) wifi() string {
	h.Helper()
	links, err := filepath.Glob("/sys/class/net/wlan*")
	if err == nil && len(links) == 0 {
		h.run("modprobe", "mac80211_hwsim", "radios=1")
		links, err = filepath.Glob("/sys/class/net/wlan*")
	}
	if err != nil || len(links) == 0 {
		h.Fatalf("no wlan: %v", err)
	}
	name := filepath.Base(links[0])
	phy, err := os.Readlink(filepath.Join(links[0], "phy80211"))
	if err != nil {
		h.Fatal(err)
	}
	h.run("iw", "phy", filepath.Base(phy), "set", "netns", "name", h.ns.Path())
	h.ip("link", "set", name, "up")
	return name
}
