package network

import (
	"strings"
	"testing"

	"vmnet/internal/network/firewall"
	"vmnet/internal/network/rivals"
	"vmnet/internal/nstest"
)

// TestLiveRoutedBesideOthers: the programs that drop what the host forwards for a routed guest are
// named, and the guest is reached once the cure was typed.
func TestLiveRoutedBesideOthers(t *testing.T) {
	for name, start := range rivals.All {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newHost(t)
			guest := nstest.New(t)
			x.cable(x.host, "tap0", "169.254.0.1/32", "fe80::1/64",
				guest, "eth0", "203.0.113.11/24", "2001:db8:f::11/64")
			x.ip(x.host, "route", "add", "203.0.113.11", "dev", "tap0")
			x.ip(guest, "route", "replace", "203.0.113.0/24", "via", "169.254.0.1", "dev", "eth0", "onlink")
			x.ip(x.wan, "route", "add", "203.0.113.11", "via", hostIP)
			x.sysctl(x.host, "net/ipv4/ip_forward", "1")
			obstacles := func() []firewall.Obstacle {
				t.Helper()
				h, err := firewall.Read(x.ctx(), x.host)
				if err != nil {
					t.Fatal(err)
				}
				return h.Routed("tap0", "up0", tablePrefix)
			}
			if found := obstacles(); len(found) > 0 {
				t.Errorf("before it runs: %v", found)
			}
			r := x.beside(start)
			r.Start()
			found := obstacles()
			for _, o := range found {
				if o.Owner != name || !strings.Contains(o.Effect, " of the guest to and from the LAN") {
					t.Errorf("%+v", o)
				}
				for command := range strings.SplitSeq(o.Cure, "; ") {
					if !strings.HasPrefix(command, "ZONE") { // the cure's last words
						r.Must(strings.Fields(strings.ReplaceAll(command, "ZONE", "public"))...)
					}
				}
			}
			if len(found) == 0 {
				t.Error("no obstacle")
			}
			for _, o := range obstacles() {
				t.Errorf("after the cure: %s", o)
			}
			x.answers(x.wan, ":7")
			x.answers(guest, ":80")
			x.wants("out", x.ask(guest, wanIP+":7"), "203.0.113.11")
			x.wants("in", x.ask(x.wan, "203.0.113.11:80"), wanIP)
		})
	}
}
