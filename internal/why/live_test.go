package why

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/config"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// patience bounds a wait on a loaded machine.
const patience = 60 * time.Second

// site is a host in a namespace of its own, with a guest: net0 and net1 are on br0, which the host
// forwards to up0; net2 is on br1, whose uplink is up1.
type site struct {
	*testing.T
	ns, beyond *netns.NS
	m          *tapmgr.Manager
	vm         *testvm.VM
	name       string
	dir        config.Dir
}

// sh runs commands in the host's namespace.
func (s *site) sh(script string) {
	s.Helper()
	s.in(s.ns, script)
}

func (s *site) in(ns *netns.NS, script string) {
	s.Helper()
	if script == "" {
		return
	}
	if out, err := tool.Run(context.Background(), ns, "", "sh", "-ec", script); err != nil {
		s.Fatalf("%s: %v %s", script, err, out)
	}
}

func newSite(t *testing.T) *site {
	t.Helper()
	_, err := tool.Find("nft", "nftables")
	nstest.Require(t, "nft", err == nil, "apt install nftables")
	testvm.Require(t)
	s := &site{T: t, ns: nstest.New(t), beyond: nstest.New(t), dir: config.Dir(t.TempDir())}
	file, err := s.beyond.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i, address := range []string{"192.0.2.7/24", "", "198.18.0.1/24"} {
		s.sh(fmt.Sprintf("ip link add up%d type veth peer name far%[1]d; ip link set up%[1]d up", i))
		if address != "" {
			s.sh(fmt.Sprintf("ip address add %s dev up%d", address, i))
		}
	}
	s.sh(fmt.Sprintf("for i in 0 1; do ip link set far$i netns /proc/%d/fd/%d; done; ip link set far2 up",
		syscall.Getpid(),
		file.Fd()))
	s.in(s.beyond, "ip link set far0 up; ip link set far1 up")
	s.sh("ip route add default via 192.0.2.1 dev up0; sysctl -qw net.ipv4.ip_forward=1")
	s.sh("nft add table ip nat; nft 'add chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; }'; " +
		"nft add rule ip nat POSTROUTING oifname up0 masquerade")
	h, err := bridge.Open(s.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for name, addrs := range map[string][]netip.Prefix{"br0": {netip.MustParsePrefix("10.0.0.1/24")}, "br1": nil} {
		if err := h.Create(bridge.Config{Name: name, Addresses: addrs}); err != nil {
			t.Fatal(err)
		}
	}
	s.sh("ip link set up1 master br1")
	if s.m, err = tapmgr.Open(s.ns.Path()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.m.Close)
	inode, err := s.ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	s.name = fmt.Sprintf("P2-%d", inode%1e6)
	s.vm = testvm.StartT(t, testvm.Config{Name: s.name})
	return s
}

func (s *site) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.Cleanup(cancel)
	return ctx
}

// attach gives the guest a NIC, and an address on it.
func (s *site) attach(spec nic.Spec, address string) nic.NIC {
	s.Helper()
	spec.Target, spec.Vhost = nic.Target{VM: s.name}, nic.VhostOff
	r, err := s.m.Attach(s.ctx(), spec)
	if err != nil {
		s.Fatal(err)
	}
	// While the guest's links change, its kernel may refuse to list them.
	nstest.Eventually(s, patience, "the guest uses "+spec.NIC, func() bool {
		return s.vm.Guest.UseNIC(s.ctx(), r.NIC.MAC, address) == nil
	})
	return r.NIC
}

// follow follows a frame of one of the guest's NICs.
func (s *site) follow(id, to, frame string) *Walk {
	s.Helper()
	kind, err := ParseFrame(frame)
	if err != nil {
		s.Fatal(err)
	}
	f, err := Read(s.ctx(), Request{Manager: s.m, NS: s.ns, Dir: s.dir, VM: s.name, NIC: id, To: to, Frame: kind})
	if err != nil {
		s.Fatal(err)
	}
	return Follow(f)
}

// well demands that soon nothing stops a frame.
func (s *site) well(id, to, frame string) {
	s.Helper()
	var w *Walk
	end := time.Now().Add(patience)
	for {
		if w = s.follow(id, to, frame); w.Stopped() == nil {
			return
		}
		if time.Now().After(end) {
			s.Fatalf("all is well, and yet:\n%s", w.Text(80, nil))
		}
	}
}

// broken is a fault that is made for real, and mended again.
type broken struct {
	name, make, mend string
	nic, to, frame   string // defaults: net0, outside, icmp
	where, why       string // of the step that stops the frame
}

func (b broken) defaults(s *site) broken {
	for p, value := range map[*string]string{&b.nic: "net0", &b.to: "outside", &b.frame: "icmp"} {
		if *p == "" {
			*p = value
		}
	}
	names := strings.NewReplacer("VM", s.name, "TAP0", s.tap("net0"), "TAP1", s.tap("net1"), "TAP2", s.tap("net2"))
	for _, p := range []*string{&b.make, &b.mend, &b.to, &b.where, &b.why} {
		*p = names.Replace(*p)
	}
	return b
}

func (s *site) tap(id string) string {
	name, _ := nic.InterfaceName(s.name, id)
	return name
}

// TestLiveFaults makes faults for real, on a host with a real guest. Each is named, and where it is
// mended, none is.
func TestLiveFaults(t *testing.T) {
	s := newSite(t)
	s.attach(nic.Spec{NIC: "net0", Bridge: "br0"}, "10.0.0.11/24")
	net1 := s.attach(nic.Spec{NIC: "net1", Bridge: "br0"}, "10.0.0.12/24")
	s.attach(nic.Spec{NIC: "net2", Bridge: "br1"}, "192.0.2.40/24")
	if _, err := s.vm.Guest.Ping(s.ctx(), "10.0.0.1"); err != nil { // from now on the host knows the guest's address
		t.Fatal(err)
	}
	for _, to := range [][3]string{
		{"net0", "outside", "icmp"},
		{"net0", "outside", "tcp:443"},
		{"net0", s.name + "/net1", "icmp"},
		{"net0", "10.0.0.1", "tcp:22"},
		{"net2", "outside", "dhcp"},
		{"net0", "outside", "arp"},
	} {
		s.well(to[0], to[1], to[2])
	}
	macs := strings.NewReplacer("MAC1", net1.MAC, "MAC0", s.macOf("net0"))
	for _, b := range liveFaults {
		b = b.defaults(s)
		b.make, b.mend, b.why = macs.Replace(b.make), macs.Replace(b.mend), macs.Replace(b.why)
		t.Run(b.name, func(t *testing.T) {
			sub := *s
			sub.T = t
			sub.sh(macs.Replace("ip neigh replace 10.0.0.11 lladdr MAC0 dev br0 nud permanent")) // no fault lets it go
			sub.sh(b.make)
			defer sub.sh(b.mend)
			sub.named(b)
		})
	}
	s.well("net0", "outside", "tcp:443")
	s.guestFaults()
	s.well("net0", "outside", "tcp:443")
	t.Logf("%d faults by commands", len(liveFaults))
}

func (s *site) macOf(id string) string {
	s.Helper()
	all, err := s.m.List(s.ctx(), s.name)
	if err != nil {
		s.Fatal(err)
	}
	for _, n := range all {
		if n.ID == id {
			return n.MAC
		}
	}
	s.Fatal("no " + id)
	return ""
}

// named demands that the walk ends at the fault.
func (s *site) named(b broken) {
	s.Helper()
	w := s.follow(b.nic, b.to, b.frame)
	stop := w.Stopped()
	if stop == nil || !strings.HasPrefix(stop.Where, b.where) || !strings.Contains(stop.Why,
		b.why) || stop.Cure == "" {
		s.Errorf("want %s: %s; found\n%s", b.where, b.why, w.Text(80, nil))
	}
}

// guestFaults are faults of the guest and its QEMU.
func (s *site) guestFaults() {
	c, err := qmp.Dial(s.ctx(), s.vm.QMP)
	if err != nil {
		s.Fatal(err)
	}
	do := func(command string, args any) func() {
		return func() {
			c, err := qmp.Dial(s.ctx(), s.vm.QMP)
			if err == nil {
				err = c.Execute(s.ctx(), command, args, nil)
				_ = c.Close()
			}
			if err != nil {
				s.Fatal(err)
			}
		}
	}
	_ = c.Close()
	link := func(up bool) func() { return do("set_link", map[string]any{"name": "vmnet-net0", "up": up}) }
	signal := func(sig syscall.Signal) func() {
		return func() {
			if err := s.vm.Signal(sig); err != nil {
				s.Fatal(err)
			}
		}
	}
	for _, f := range []struct {
		make, mend func()
		why        string
	}{
		{link(false), link(true), "the guest's driver sees no carrier"},
		{do("stop", nil), do("cont", nil), "the guest does not run: its VMM is in state paused"},
		{signal(syscall.SIGSTOP), signal(syscall.SIGCONT), "of its VMM is stopped by a signal"},
	} {
		f.make()
		s.named(broken{nic: "net0", to: "outside", frame: "icmp", where: "guest " + s.name, why: f.why})
		f.mend()
	}
}
