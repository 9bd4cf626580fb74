package vxlan

import (
	"net/netip"
	"strings"
	"testing"
)

func addrs(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

func TestValidate(t *testing.T) {
	local := netip.MustParseAddr("192.0.2.1")
	many := make([]netip.Addr, MaxRemotes+1)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	}
	for _, c := range []struct {
		cfg  Config
		want string // in the error; empty for none
	}{
		{Config{VNI: 1, Local: local}, ""},
		{Config{VNI: MaxVNI, Local: local, Remotes: addrs("192.0.2.2", "192.0.2.3"), Port: 8472}, ""},
		{Config{VNI: 7, Local: netip.MustParseAddr("fd00::1"), Remotes: addrs("fd00::2")}, ""},
		{Config{VNI: 0, Local: local}, "VNI 0: want 1 to"},
		{Config{VNI: MaxVNI + 1, Local: local}, "want 1 to"},
		{Config{VNI: 7}, "--local"},
		{Config{VNI: 7, Local: local, Port: 65536}, "port 65536"},
		{Config{VNI: 7, Local: netip.MustParseAddr("239.1.1.1")}, "local address 239.1.1.1"},
		{Config{VNI: 7, Local: netip.MustParseAddr("127.0.0.1")}, "local address 127.0.0.1"},
		{Config{VNI: 7, Local: netip.MustParseAddr("::ffff:192.0.2.1")}, "unicast address"},
		{Config{VNI: 7, Local: local, Remotes: addrs("239.1.1.1")}, "remote address 239.1.1.1"},
		{Config{VNI: 7, Local: local, Remotes: addrs("0.0.0.0")}, "remote address 0.0.0.0"},
		{Config{VNI: 7, Local: local, Remotes: addrs("fd00::2")}, "other IP version"},
		{Config{VNI: 7, Local: local, Remotes: addrs("192.0.2.1")}, "it is the local one"},
		{Config{VNI: 7, Local: local, Remotes: addrs("192.0.2.2", "192.0.2.2")}, "twice"},
		{Config{VNI: 7, Local: local, Remotes: many}, "at most 128"},
	} {
		err := c.cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
}

func TestDerived(t *testing.T) {
	c := Config{VNI: 100, Local: netip.MustParseAddr("192.0.2.1")}
	if c.Interface("br0") != "vx100" || c.Overhead() != 50 || c.UDPPort() != 4789 || c.Static() {
		t.Errorf("%s, %d, %d, %v", c.Interface("br0"), c.Overhead(), c.UDPPort(), c.Static())
	}
	c = Config{VNI: MaxVNI, Local: netip.MustParseAddr("fd00::1"), Port: 8472, Remotes: addrs("fd00::2")}
	if len(c.Interface("br0")) > 15 || c.Overhead() != 70 || c.UDPPort() != 8472 || !c.Static() {
		t.Errorf("%s, %d, %d, %v", c.Interface("br0"), c.Overhead(), c.UDPPort(), c.Static())
	}
}
