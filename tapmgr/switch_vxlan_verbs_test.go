package tapmgr_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/tapmgr/nic"
)

// TestSwitchGuestMTU: a guest on a switch with a VXLAN port has the MTU that reaches the other
// hosts, unless another one is asked for. A way that is not there is taken to have 1500 bytes.
func TestSwitchGuestMTU(t *testing.T) {
	fakeOnSwitch(t, func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
		cfg := vport.VXLAN{VNI: 77, Remotes: []netip.Addr{netip.MustParseAddr("2001:db8::2")}}
		files, err := vswitch.VXLANFiles(s.ns.Path(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.ask(func(ctx context.Context, c *control.Client) error {
			return c.AddPort(ctx, control.Port{Name: "up", Kind: control.VXLAN, VXLAN: &cfg}, files...)
		})
		for _, f := range files {
			_ = f.Close()
		}
		for want, asked := range map[int]int{1430: 0, 1280: 1280} {
			spec.MTU = asked
			made := s.attach(spec)
			if made.MTU != want {
				t.Errorf("asked for %d: %d, want %d", asked, made.MTU, want)
			}
			if res, err := g.tryAttach(spec); err != nil || res.Changed {
				t.Errorf("the same again: %+v, %v", res, err)
			}
			if got := s.check(); len(got) > 0 {
				t.Errorf("check %+v", got)
			}
			if _, err := g.tryDetach("net0", 20*time.Second, false); err != nil {
				t.Fatal(err)
			}
		}
	})
}
