package main

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/internal/access/policy"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// TestRequest: the request has all of a NIC that rules are about, with the defaults of what the NIC
// leaves open.
func TestRequest(t *testing.T) {
	port := brport.Settings{VLAN: 7}
	addrs := []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}
	guest := nic.Target{VM: "P2"}
	for _, tc := range []struct {
		spec nic.Spec
		want policy.Request
	}{
		{
			nic.Spec{Target: guest, Bridge: "br0", Port: port, Queues: 2},
			policy.Request{Guest: "P2", Bridge: "br0", Port: port, Queues: 2},
		},
		{
			nic.Spec{Target: guest, Lower: &nic.Lower{Kind: vtap.Macvtap, Device: "eth0"}},
			policy.Request{Guest: "P2", Lower: "eth0", Kind: vtap.Macvtap, Mode: "bridge"},
		},
		{
			nic.Spec{Target: guest, Lower: &nic.Lower{Kind: vtap.Macvtap, Device: "eth0", Mode: "passthru"}},
			policy.Request{Guest: "P2", Lower: "eth0", Kind: vtap.Macvtap, Mode: "passthru"},
		},
		{
			nic.Spec{
				Target: guest, Bridge: "br0", IP: []netip.Addr{netip.MustParseAddr("192.0.2.7")},
				Security: nic.Security{
					Checks: portsec.IP, EtherTypes: []portsec.EtherType{0x88f7},
					Nets: []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")},
				},
			},
			policy.Request{
				Guest: "P2", Bridge: "br0", Checks: portsec.IP, EtherTypes: []portsec.EtherType{0x88f7},
				Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/64")},
			},
		},
		{
			nic.Spec{Target: guest, Lower: &nic.Lower{Kind: vtap.IPVtap, Device: "eth0", Addrs: addrs}},
			policy.Request{Guest: "P2", Lower: "eth0", Kind: vtap.IPVtap, Mode: "l2", Addrs: addrs},
		},
	} {
		got := request(tc.spec)
		if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Error(diff)
		}
		if err := got.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// TestLiveACardIsNotGivenWhole asks for what takes a parent device from the host, for the
// host's own address, and for a guest's name that makes another's interface.
func TestLiveACardIsNotGivenWhole(t *testing.T) {
	i := install(t)
	i.config("bridge.conf", "allow br0\n")
	i.config("policy.yaml",
		"rules:\n- {users: ['*'], bridges: [br0], guests: ['alice-*']}\n- {users: ['*'], lowers: [eth0]}\n- {users: ['*'], lowers: [eth1], ips: [192.0.2.0/24]}\n")
	ns := nstest.New(t)
	makeBridges(t, ns, "br0")
	_ = ns.Do(func() error {
		for _, line := range []string{
			"link add eth0 type veth peer name far0", "link set eth0 up", "link set far0 up",
			"link add eth1 type veth peer name far1", "link set eth1 up", "link set far1 up",
		} {
			if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v: %s", line, err, out)
			}
		}
		for _, c := range []struct{ args, want string }{
			{"--vm P3 --macvtap eth0 --mode passthru", "policy.yaml:3: mode passthru is not among"},
			{"--vm P3 --ipvtap eth0 --ip 192.0.2.7", "policy.yaml:3: IP address 192.0.2.7 may not be asked for"},
			{
				"--vm P3 --ipvtap eth1 --ip 192.0.2.7 --ip 198.51.100.1",
				"policy.yaml:4: IP address 198.51.100.1 is not among 192.0.2.0/24",
			},
			{"--vm lab --bridge br0 --nic 1", "policy.yaml:2: guest lab is not among alice-*"},
			{"--vm P3 --macvtap eth0 --vhost off", ""},
			{"--vm alice-1 --bridge br0 --vhost off", ""},
		} {
			out, err := i.as(nobody, append(strings.Fields(c.args), "--vmm", "env", "--",
				"/bin/true")...).CombinedOutput()
			if (err == nil) != (c.want == "") || !strings.Contains(string(out), c.want) {
				t.Errorf("%s: %v: %s, want %q", c.args, err, out, c.want)
			}
		}
		return nil
	})
}
