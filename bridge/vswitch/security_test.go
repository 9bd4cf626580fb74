package vswitch

import (
	"slices"
	"testing"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/bridge/vswitch/vport"
)

// TestPortSecurity sends the named frames by a port for each of their configurations.
func TestPortSecurity(t *testing.T) {
	guests := map[string]portsec.Config{}
	for _, c := range portsectest.Table() {
		guests[c.Config.String()] = c.Config
	}
	for name, cfg := range guests {
		l := newLAN(t, map[string]vport.Config{"guest": {Security: cfg}, "far": {}})
		for _, c := range portsectest.Table() {
			// The switch itself drops frames without a whole Ethernet header or tag.
			if c.Config.String() != name || len(c.Frame) < 18 {
				continue
			}
			why := securityBase + Reason(c.Want)
			before := l.port("guest").Dropped(why)
			far := l.send("guest", c.Frame)["far"]
			dropped := l.port("guest").Dropped(why) - before
			if c.Want != portsec.Pass {
				if len(far) != 0 || dropped != 1 {
					t.Errorf("%s: %d frames arrive, %d were dropped as %s", c.Name, len(far), dropped, why)
				}
				continue
			}
			if len(far) != 1 || !slices.Equal(far[0], c.Frame) {
				t.Errorf("%s: arrives %x (%v)", c.Name, far, l.port("guest").Stats().Drops)
			}
		}
	}
}

// TestPortSecurityLearnsNothing: a forged source address attracts no frames.
func TestPortSecurityLearnsNothing(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"guest": {Security: portsectest.Config()}, "victim": {}, "far": {}})
	forged := slices.Concat(portsectest.VictimMAC, portsectest.OtherMAC, []byte{8, 0}, make([]byte, 46))
	l.send("guest", forged)
	l.send("guest", forged)
	to := slices.Concat(portsectest.OtherMAC, portsectest.VictimMAC, []byte{8, 0}, make([]byte, 46))
	if got := l.send("victim", to); len(got["guest"]) != 1 || len(got["far"]) != 1 {
		t.Errorf("a frame to the forged address is not flooded: %v", got)
	}
}
