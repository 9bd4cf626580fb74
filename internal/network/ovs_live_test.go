package network

import (
	"errors"
	"strings"
	"testing"

	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
)

// TestLiveUplinkOfOVS: a network is behind a bridge of Open vSwitch by an internal port, and does
// not take the bridge itself.
func TestLiveUplinkOfOVS(t *testing.T) {
	x := newLAN(t)
	o := ovstest.New(t, x.host)
	o.StartSwitch()
	o.AddBridge("br-ex")
	o.Vsctl("--timeout=30", "add-port", "br-ex", "lan0", "--", "add-port", "br-ex", "net0", "--",
		"set", "Interface", "net0", "type=internal")
	n := onLAN("net0")
	n.Name = "br-ex"
	if err := x.m.Create(x.ctx(), Wanted{Network: n}); !errors.Is(err, ErrForeign) {
		t.Errorf("a network in place of the bridge: %v", err)
	}
	x.create(onLAN("net0"))
	x.consistent()
	g := x.guest("lan", webMAC)
	x.ip(g.ns, "addr", "add", "192.0.2.20/24", "dev", "eth0")
	nstest.Eventually(t, patience, "a guest reaches the LAN through Open vSwitch", func() bool {
		out, err := x.run(g.ns, "busybox", "ping", "-c", "1", "-W", "2", "192.0.2.1")
		return err == nil && strings.Contains(out, "1 packets received")
	})
	x.ip(x.host, "link", "del", "g1")
	if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
		t.Fatal(err)
	}
	if got := o.Vsctl("list-ports", "br-ex"); got != "lan0\nnet0" {
		t.Errorf("ports %q: the host's own must stay", got)
	}
}
