package why

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/config"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// patience bounds a wait on a loaded machine.
const patience = 60 * time.Second

// site is a host in a namespace of its own, with a guest. Its way out is by up0; up1 leads out as
// well, and up2 to far2 of the host itself.
type site struct {
	*testing.T
	ns, beyond *netns.NS
	m          *tapmgr.Manager
	vm         *testvm.VM
	qemu       *qmptest.QEMU // instead of vm
	name       string
	macs       map[string]string // of the guest's NICs, by id
	dir        config.Dir
	keeps      string // commands before each fault
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

// newBareHost is a site with nothing in it.
func newBareHost(t *testing.T) *site {
	t.Helper()
	nstest.RequireRoot(t)
	s := &site{T: t, ns: nstest.New(t), dir: config.Dir(t.TempDir())}
	var err error
	if s.m, err = tapmgr.Open(s.ns.Path()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.m.Close)
	inode, err := s.ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	s.name, s.macs = fmt.Sprintf("P2-%d", inode%1e6), map[string]string{}
	return s
}

// newHost is a site without a guest.
func newHost(t *testing.T) *site {
	t.Helper()
	_, err := tool.Find("nft", "nftables")
	nstest.Require(t, "nft", err == nil, "apt install nftables")
	s := newBareHost(t)
	s.beyond = nstest.New(t)
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
		syscall.Getpid(), file.Fd()))
	s.in(s.beyond, "ip link set far0 up; ip link set far1 up")
	s.sh("ip route add default via 192.0.2.1 dev up0; sysctl -qw net.ipv4.ip_forward=1")
	return s
}

// bridges makes br0, from which the host forwards to up0 with NAT, and br1 with the uplink up1.
func (s *site) bridges() {
	s.Helper()
	s.sh("nft 'add table ip nat; add chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; }; " +
		"add rule ip nat POSTROUTING oifname up0 masquerade'")
	h, err := bridge.Open(s.ns.Path())
	if err != nil {
		s.Fatal(err)
	}
	defer h.Close()
	for name, addrs := range map[string][]netip.Prefix{"br0": {netip.MustParsePrefix("10.0.0.1/24")}, "br1": nil} {
		if err := h.Create(bridge.Config{Name: name, Addresses: addrs}); err != nil {
			s.Fatal(err)
		}
	}
	s.sh("ip link set up1 master br1")
}

func (s *site) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.Cleanup(cancel)
	return ctx
}

// plug gives the guest a NIC.
func (s *site) plug(spec nic.Spec) nic.NIC {
	s.Helper()
	spec.Target, spec.Vhost = nic.Target{VM: s.name}, nic.VhostOff
	r, err := s.m.Attach(s.ctx(), spec)
	if err != nil {
		s.Fatal(err)
	}
	s.macs[r.NIC.ID] = r.NIC.MAC
	return r.NIC
}

// set changes a NIC.
func (s *site) set(id string, change func(*nic.Spec)) {
	s.Helper()
	_, err := s.m.Set(s.ctx(), nic.Target{VM: s.name}, id, func(now nic.Spec) (nic.Spec, error) {
		change(&now)
		return now, nil
	})
	if err != nil {
		s.Fatal(err)
	}
}

// read reads what is known about a frame of one of the guest's NICs.
func (s *site) read(id, to, frame string) *Facts {
	s.Helper()
	kind, err := ParseFrame(frame)
	if err != nil {
		s.Fatal(err)
	}
	f, err := Read(s.ctx(), Request{Manager: s.m, NS: s.ns, Dir: s.dir, VM: s.name, NIC: id, To: to, Frame: kind})
	if err != nil {
		s.Fatal(err)
	}
	return f
}

// follow follows a frame of one of the guest's NICs.
func (s *site) follow(id, to, frame string) *Walk {
	s.Helper()
	return Follow(s.read(id, to, frame))
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

// broken is a fault that is made for real, and mended again. Its name is that of a row of
// docs/why.md, which says what the walk ends with.
type broken struct {
	name, make, mend string
	keeps            string      // the site's
	do, undo         func(*site) // the same by functions
	nic, to, frame   string      // defaults: net0, outside, icmp
	where, why       string      // of the step that stops the frame
	maybe            bool        // it need not stop this frame: the step is Unknown
}

func (b broken) defaults(s *site) broken {
	for p, value := range map[*string]string{&b.nic: "net0", &b.to: "outside", &b.frame: "icmp"} {
		if *p == "" {
			*p = value
		}
	}
	names := []string{"VM/", s.name + "/"}
	for i := range 10 {
		id := fmt.Sprintf("net%d", i)
		names = append(names, fmt.Sprintf("TAP%d", i), s.tap(id), fmt.Sprintf("MAC%d", i), s.macs[id])
	}
	b.keeps = s.keeps
	for _, p := range []*string{&b.keeps, &b.make, &b.mend, &b.to, &b.where, &b.why} {
		*p = strings.NewReplacer(names...).Replace(*p)
	}
	return b
}

// breaks makes each fault, demands that it is named, and mends it.
func (s *site) breaks(all []broken) {
	s.Helper()
	for _, b := range all {
		b = b.defaults(s)
		s.Run(b.name, func(t *testing.T) {
			sub := *s
			sub.T = t
			sub.sh(b.keeps)
			sub.sh(b.make)
			defer sub.sh(b.mend)
			if b.do != nil {
				b.do(&sub)
				defer b.undo(&sub)
			}
			sub.named(b)
		})
	}
}

func (s *site) tap(id string) string {
	name, _ := nic.InterfaceName(s.name, id)
	return name
}

// TestLiveFaults makes faults of the host. Each is named, and where it is mended, none is.
func TestLiveFaults(t *testing.T) {
	s := newKinds(t)
	s.bridges()
	s.plug(nic.Spec{NIC: "net0", Bridge: "br0"})
	s.plug(nic.Spec{NIC: "net1", Bridge: "br0"})
	s.plug(nic.Spec{NIC: "net2", Bridge: "br1"})
	s.keeps = "ip neigh replace 10.0.0.11 lladdr MAC0 dev br0 nud permanent"
	wells := [][3]string{
		{"net0", "outside", "icmp"},
		{"net0", "outside", "tcp:443"},
		{"net0", s.name + "/net1", "icmp"},
		{"net0", "10.0.0.1", "tcp:22"},
		{"net2", "outside", "dhcp"},
		{"net0", "outside", "arp"},
	}
	for _, to := range wells {
		s.well(to[0], to[1], to[2])
	}
	s.breaks(liveFaults)
	s.breaks(s.functionFaults())
	s.movedBridge()
	for _, to := range wells {
		s.well(to[0], to[1], to[2])
	}
}

// named demands that the walk soon ends at the fault, which a daemon may see a moment later.
func (s *site) named(b broken) {
	s.Helper()
	b = b.defaults(s)
	var w *Walk
	for end := time.Now().Add(patience); ; {
		w = s.follow(b.nic, b.to, b.frame)
		if found := b.step(w); found != nil {
			s.documented(b.name, found)
			return
		}
		if time.Now().After(end) {
			s.Errorf("want %s: %s; found\n%s", b.where, b.why, w.Text(80, nil))
			return
		}
	}
}

// step returns the step that names the fault, or nil.
func (b broken) step(w *Walk) *Step {
	names := func(s Step) bool {
		return s.Verdict != Passes && strings.HasPrefix(s.Where, b.where) && strings.Contains(s.Why, b.why) &&
			s.Cure != ""
	}
	if b.maybe {
		if i := slices.IndexFunc(w.Steps, names); i >= 0 && w.Stopped() == nil {
			return &w.Steps[i]
		}
		return nil
	}
	if stop := w.Stopped(); stop != nil && names(*stop) {
		return stop
	}
	return nil
}
