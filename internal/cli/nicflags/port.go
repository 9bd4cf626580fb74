package nicflags

import (
	"errors"
	"strconv"

	"github.com/spf13/pflag"

	"vmnet/bridge/brport"
)

// AddPort adds the flags for the settings of a NIC's port. What a flag without a value sets is off
// by default. Package declared parses the attributes of a domain's metadata by the same flags.
func AddPort(f *pflag.FlagSet, p *brport.Settings) {
	vlan := func(to *int) func(string) error {
		return func(s string) error {
			id, err := strconv.Atoi(s)
			switch {
			case err != nil:
				return errors.New("want a whole number, 1 to 4094")
			case id == 0: // in Settings 0 means no VLAN
				return errors.New("VLAN 0 only marks a priority (want 1 to 4094)")
			}
			*to = id
			return nil
		}
	}
	f.Var(Value("N", "", vlan(&p.VLAN)), "vlan",
		"the port is in VLAN N only, untagged; 1 to 4094, on a bridge that filters VLANs, or on any switch")
	f.Var(Value("LIST", "", func(s string) (err error) {
		p.Trunk, err = brport.ParseVLANs(s)
		return err
	}), "trunk", "the VLANs that the guest may use tagged: 2-5,7; or all")
	f.Var(Value("N", "", vlan(&p.Native)), "native",
		"with --trunk: the VLAN of untagged frames (default: they are dropped)")
	f.BoolVar(&p.Isolated, "isolated", false, "no frames to and from other isolated ports")
	f.BoolVar(&p.Hairpin, "hairpin", false, "frames may leave by the port that they arrived on")
	f.BoolVar(&p.NoLearning, "no-learning", false, "learn no addresses behind the port")
	f.Var(Value("LIST", "", func(s string) (err error) {
		p.Forward, err = brport.ParseProtocols(s)
		return err
	}), "forward",
		"forward the guest's frames of these link-local protocols: lldp, lacp, eapol, ptp, elmi, stp, or all")
	f.BoolVar(&p.NoFlood, "no-flood", false, "no frames with destinations that are not known to be behind the port")
}
