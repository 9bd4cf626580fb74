package nic

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/internal/stablemac"
	"vmnet/macvtap/vtap"

	"github.com/google/go-cmp/cmp"
)

func valid() Spec { return Spec{Target: Target{VM: "P2"}, Bridge: "br0"} }

func ips(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// inLab returns a Spec of a NIC of a network.
func inLab(ip ...string) Spec { return Spec{Target: Target{VM: "P2"}, Network: "lab", IP: ips(ip...)} }

func TestValidate(t *testing.T) {
	for _, s := range []Spec{valid(), inLab(), inLab("10.66.0.20", "fd66::20")} {
		if err := s.Validate(); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
	for want, change := range map[string]func(*Spec){
		"no guest is named":         func(s *Spec) { s.VM = "" },
		"at most 200":               func(s *Spec) { s.VM = strings.Repeat("x", 201) },
		"printable":                 func(s *Spec) { s.VM = "a\nb" },
		"NIC id":                    func(s *Spec) { s.NIC = "Net0" },
		"1 to 12":                   func(s *Spec) { s.NIC = "abcdefghijklm" },
		"neither bridge nor":        func(s *Spec) { s.Bridge = "" },
		"bridge name":               func(s *Spec) { s.Bridge = "br%d" },
		"multicast":                 func(s *Spec) { s.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} },
		"zero":                      func(s *Spec) { s.MAC = make(net.HardwareAddr, 6) },
		"begin with fe":             func(s *Spec) { s.MAC = net.HardwareAddr{0xfe, 0, 0, 0, 0, 1} },
		"6 bytes":                   func(s *Spec) { s.MAC = make(net.HardwareAddr, 8) },
		"MTU 67":                    func(s *Spec) { s.MTU = 67 },
		"MTU 65536":                 func(s *Spec) { s.MTU = 65536 },
		"257 queues":                func(s *Spec) { s.Queues = 257 },
		"-2 queues":                 func(s *Spec) { s.Queues = -2 },
		`vhost "yes"`:               func(s *Spec) { s.Vhost = "yes" },
		"has one queue":             func(s *Spec) { s.Model, s.Queues = "e1000", 2 },
		"cannot use vhost-net":      func(s *Spec) { s.Model, s.Vhost = "e1000", VhostOn },
		"cannot announce an MTU":    func(s *Spec) { s.Model, s.MTU = "e1000", 1400 },
		"model":                     func(s *Spec) { s.Model = "a b" },
		"set by --mac":              func(s *Spec) { s.DeviceOptions = map[string]string{"mac": "x"} },
		"set by vmnet":              func(s *Spec) { s.DeviceOptions = map[string]string{"netdev": "x"} },
		"either on a bridge, on a ": func(s *Spec) { s.Network = "lab" },
		"network name":              func(s *Spec) { s.Bridge, s.Network = "", "l/b" },
		"need a network":            func(s *Spec) { s.IP = ips("10.66.0.20") },
		"without a zone":            func(s *Spec) { *s = inLab("fe80::1%eth0") },
		"IP 0.0.0.0":                func(s *Spec) { *s = inLab("0.0.0.0") },
		"IP 255.255.255.255":        func(s *Spec) { *s = inLab("255.255.255.255") },
		"IP 224.0.0.1":              func(s *Spec) { *s = inLab("224.0.0.1") },
		"IP 127.0.0.1":              func(s *Spec) { *s = inLab("127.0.0.1") },
		"IP ::ffff:10.66.0.20":      func(s *Spec) { *s = inLab("::ffff:10.66.0.20") },
		"IP 10.66.0.20 is given":    func(s *Spec) { *s = inLab("10.66.0.20", "fd66::20", "10.66.0.20") },
		"9 addresses":               func(s *Spec) { *s = inLab(strings.Fields(strings.Repeat("10.66.0.20 ", 9))...) },
		`iface-id "-x"`:             func(s *Spec) { s.IfaceID = "-x" },
		`ovsdb "db.sock"`:           func(s *Spec) { s.OVSDB = "db.sock" },
		`ovsdb "/run/../db.sock"`:   func(s *Spec) { s.OVSDB = "/run/../db.sock" },
		`ovsdb "/run//db.sock"`:     func(s *Spec) { s.OVSDB = "/run//db.sock" },
		`ovsdb "/run/db\nsock"`:     func(s *Spec) { s.OVSDB = "/run/db\nsock" },
		"want the name of a prope":  func(s *Spec) { s.DeviceOptions = map[string]string{"a,b": "x"} },
	} {
		s := valid()
		change(&s)
		if err := s.Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ErrInvalid with %q", err, want)
		}
	}
}

func TestInterfaceName(t *testing.T) {
	long := strings.Repeat("v", 100)
	for _, c := range []struct{ vm, nic, name, alt string }{
		{"P2", "net0", "P2-net0", ""},
		{"ten-bytes_", "net0", "ten-bytes_-net0", ""},
		{"eleven-byte", "net0", "eleven-b-urvq7k", "eleven-byte-net0"},
		{"my vm", "net0", "my-vm-vvfklu", "my vm-net0"},
		{"-x", "net0", "x-2hstvt", "-x-net0"},
		{"名前", "net0", "a5yvbp", "名前-net0"},
		{long, "net0", "vvvvvvvv-zp3irr", long + "-net0"},
	} {
		name, alt := InterfaceName(c.vm, c.nic)
		if name != c.name || alt != c.alt {
			t.Errorf("InterfaceName(%q, %q) = %q, %q, want %q, %q", c.vm, c.nic, name, alt, c.name, c.alt)
		}
		if !brport.ValidName(name) || len(alt) > maxAltName {
			t.Errorf("InterfaceName(%q, %q): the kernel takes neither %q nor %q", c.vm, c.nic, name, alt)
		}
	}
}

func TestInterfaceNamesOfLikeGuestsDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, vm := range []string{
		"production-database-1", "production-database-2", "production.database-1",
		"production_database",
	} {
		for _, nic := range []string{"net0", "net1"} {
			name, _ := InterfaceName(vm, nic)
			if other, ok := seen[name]; ok {
				t.Errorf("%s/%s and %s are both %s", vm, nic, other, name)
			}
			seen[name] = vm + "/" + nic
		}
	}
}

func TestDefaultMAC(t *testing.T) {
	a, b := DefaultMAC("P2", "net0"), DefaultMAC("P2", "net1")
	if a.String() == b.String() || a.String() != DefaultMAC("P2", "net0").String() {
		t.Errorf("%v and %v: want stable and different", a, b)
	}
	if !strings.HasPrefix(a.String(), "52:54:00:") {
		t.Errorf("%v is not in QEMU's range", a)
	}
	if got := stablemac.HostMAC(a); got[0] != 0xfe || got.String()[2:] != a.String()[2:] || a[0] != 0x52 {
		t.Errorf("host side %v of %v", got, a)
	}
}

func exampleRecord() Record {
	return Record{
		VM: "my vm=100%", NIC: "net0", Type: TypeTap, Source: "br0", MAC: net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3},
		Model: "virtio-net-pci", Queues: 2, Vhost: true, MTU: 9000, Options: "abc", Phase: PhaseAttaching,
		Network: "lab", IP: ips("10.66.0.20", "fd66::20"),
	}
}

func TestAliasRoundTrip(t *testing.T) {
	want := exampleRecord()
	alias, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const text = "vmnet vm=my%20vm=100%25 nic=net0 type=tap source=br0 network=lab ip=10.66.0.20,fd66::20 " +
		"mac=52:54:00:01:02:03 model=virtio-net-pci queues=2 vhost=on mtu=9000 opts=abc state=attaching"
	if diff := cmp.Diff(text, alias); diff != "" {
		t.Errorf("alias (-want +got):\n%s", diff)
	}
	got, ok := ParseRecord(alias)
	if diff := cmp.Diff(want, got, sameIP); !ok || diff != "" {
		t.Errorf("parsed %v (-want +got):\n%s", ok, diff)
	}
	if _, ok := ParseRecord(alias + " later=1"); !ok {
		t.Error("a key of a later version makes it a stranger")
	}
}

// TestAliasOfALongName: a guest of KubeVirt's, called by its namespace and name, has 127 bytes.
func TestAliasOfALongName(t *testing.T) {
	for _, change := range []func(*Record){
		func(*Record) {},
		func(r *Record) { r.Queues, r.Vhost, r.MTU, r.Owner = 8, true, 9000, 65534 },
		func(r *Record) { r.Via, r.Phase, r.Since = ViaLibvirt, PhaseStarting, 1234567 },
		func(r *Record) { r.Type, r.Source, r.Mode, r.RxFilter = "macvtap", "enp5s0f1np1", "bridge", RxAllMulti },
		func(r *Record) { r.Type, r.Source, r.Switch, r.Netns = TypeSocket, "sw0", true, 4026531840 },
	} {
		want := Record{
			VM: strings.Repeat("n", 127), NIC: "net0", Type: TypeTap, Source: "br0",
			MAC:   net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3},
			Model: "virtio-net-pci", Queues: 1, Phase: PhaseAttaching,
		}
		change(&want)
		alias, err := want.Encode()
		if err != nil {
			t.Errorf("%+v: %v", want, err)
			continue
		}
		got, ok := ParseRecord(alias)
		if diff := cmp.Diff(want, got, sameIP); !ok || diff != "" {
			t.Errorf("parsed %v (-want +got):\n%s", ok, diff)
		}
	}
}

func TestAliasRefuses(t *testing.T) {
	for _, alias := range []string{
		"", "vmnet", "vmnet ", "vmnetx vm=a nic=b queues=1 mac=52:54:00:01:02:03", "web server uplink",
		"vmnet vm=a nic=b type=tap queues=1", "vmnet vm=a nic=b type=tun queues=1 mac=52:54:00:01:02:03",
		"vmnet vm=a nic=B type=tap queues=1 mac=52:54:00:01:02:03",
		"vmnet vm=a nic=b type=tap queues=0 mac=52:54:00:01:02:03",
		"vmnet vm=a nic=b type=tap queues=9999999 mac=52:54:00:01:02:03",
		"vmnet vm=%zz nic=b type=tap queues=1 mac=52:54:00:01:02:03",
		"vmnet vm=a%0Ab nic=b type=tap queues=1 mac=52:54:00:01:02:03",
	} {
		if r, ok := ParseRecord(alias); ok {
			t.Errorf("%q was taken for ours: %+v", alias, r)
		}
	}
	r := exampleRecord()
	r.VM = strings.Repeat(" ", 90)
	if alias, err := r.Encode(); err == nil {
		t.Errorf("an alias of %d bytes was written", len(alias))
	}
}

func FuzzParseAlias(f *testing.F) {
	alias, _ := exampleRecord().Encode()
	f.Add(alias)
	f.Add("vmnet vm=a nic=b type=tap queues=1 mac=52:54:00:01:02:03")
	f.Add("vmnet =")
	f.Fuzz(func(t *testing.T, alias string) {
		r, ok := ParseRecord(alias)
		if !ok {
			return
		}
		again, err := r.Encode()
		if err != nil {
			return // longer when written our way
		}
		if back, ok := ParseRecord(again); !ok || !cmp.Equal(r, back, sameIP) {
			t.Errorf("%q was read as %+v, written as %q, read as %+v", alias, r, again, back)
		}
	})
}

// sameIP has package cmp compare addresses as a whole.
var sameIP = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// TestValidatePrepared: what cannot stay down until a commit, or cannot be the guest's NIC where it
// comes from, is refused.
func TestValidatePrepared(t *testing.T) {
	prepared := func(change func(*Spec)) Spec {
		s := valid()
		s.Prepared, s.MAC = true, net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}
		change(&s)
		return s
	}
	onto := func(l Lower) func(*Spec) { return func(s *Spec) { s.Bridge, s.Lower = "", &l } }
	on := func(by By) func(*Spec) {
		return func(s *Spec) { s.Bridge, s.Switch = "", &Switch{Name: "sw0", By: by} }
	}
	for _, change := range []func(*Spec){
		func(*Spec) {}, onto(Lower{Kind: vtap.Macvtap, Device: "eth0"}), on(ByTap), on(""),
		on(BySocket), on(ByVhostUser),
		func(s *Spec) { s.Bridge, s.Network = "", "lab" },
		func(s *Spec) { s.Bridge, s.Routed, s.IP = "", "eth0", ips("192.0.2.7") },
		onto(Lower{Kind: vtap.IPVtap, Device: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}}),
	} {
		s := prepared(change)
		if err := s.Validate(); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
		if d := s.WithDefaults(); s.Switch != nil && s.Switch.By == "" && d.Switch.By != ByTap {
			t.Errorf("a port by %s", d.Switch.By)
		}
	}
	for want, change := range map[string]func(*Spec){
		"needs the address": func(s *Spec) { s.MAC = nil },
		"libvirt migrates":  func(s *Spec) { s.Via = ViaMonitor },
	} {
		err := prepared(change).Validate()
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestPreparedRecord: the alias says that a NIC is prepared. So does the label of a NIC that has no
// alias, which a commit renews; that of others does not.
func TestPreparedRecord(t *testing.T) {
	r := Record{
		VM: "P2", NIC: "net0", Type: TypeTap, Source: "br0", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9},
		Model: DefaultModel, Queues: 1, Prepared: true, Phase: PhasePlugged,
	}
	text, err := r.Encode()
	if got, ok := ParseRecord(text); err != nil || !ok || !got.Prepared || !got.Spec().Prepared {
		t.Errorf("%s: %+v, %v, %v", text, got, ok, err)
	}
	if got, ok := ParseRecord(r.Label(7)); !ok || got.Prepared {
		t.Errorf("label %s: %+v", r.Label(7), got)
	}
	r.Type, r.Switch = TypeVhostUser, true
	for _, source := range []string{"sw0", "/run/" + strings.Repeat("x", 80)} { // the longest that fits
		r.Source = source
		got, ok := ParseRecord(r.Label(7))
		if cfg := got.SwitchPortConfig(); !ok || !got.Prepared || !cfg.Down {
			t.Errorf("label %s: %+v", r.Label(7), got)
		}
	}
}
