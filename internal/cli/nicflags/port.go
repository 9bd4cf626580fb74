package nicflags

import (
	"errors"
	"strconv"

	"github.com/spf13/pflag"

	"vmnet/bridge"
)

// AddPort adds the settings of the bridge port that a NIC gets.
func AddPort(f *pflag.FlagSet, p *bridge.PortConfig) {
	vlan := func(to *int) func(string) error {
		return func(s string) error {
			id, err := strconv.Atoi(s)
			switch {
			case err != nil:
				return errors.New("want a whole number, 1 to 4094")
			case id == 0: // which would mean that none was asked for
				return errors.New("VLAN 0 is none: a tag with it has a priority only (want 1 to 4094)")
			}
			*to = id
			return nil
		}
	}
	f.Var(Value("N", "", vlan(&p.VLAN)), "vlan", "the port is in VLAN N alone, untagged; 1 to 4094, on a bridge with --vlan-filtering")
	f.Var(Value("LIST", "", func(s string) (err error) {
		p.Trunk, err = bridge.ParseVLANs(s)
		return err
	}), "trunk", "the VLANs that the guest may use with tags: 2-5,7; or all")
	f.Var(Value("N", "", vlan(&p.Native)), "native", "with --trunk: the VLAN of untagged frames (default: they are dropped)")
	f.BoolVar(&p.Isolated, "isolated", false, "no frames to and from other isolated ports")
	f.BoolVar(&p.Hairpin, "hairpin", false, "send frames back to the port that they came from")
	f.BoolVar(&p.NoLearning, "no-learning", false, "learn no addresses behind the port")
	f.Var(Value("LIST", "", func(s string) (err error) {
		p.Forward, err = bridge.ParseProtocols(s)
		return err
	}), "forward", "forward the guest's frames of these protocols between neighbours: lldp, lacp, eapol, ptp, elmi, stp, or all")
	f.BoolVar(&p.NoFlood, "no-flood", false, "no frames for addresses that are not known to be behind the port")
}
