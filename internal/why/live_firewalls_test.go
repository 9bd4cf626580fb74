package why

import (
	"slices"
	"strings"
	"testing"

	"vmnet/internal/network/rivals"
	"vmnet/tapmgr/nic"
)

// TestLiveFaultsOfFirewalls: beside each of the real programs, the walk ends at its chain, and goes
// on once the cure was typed.
func TestLiveFaultsOfFirewalls(t *testing.T) {
	for program, f := range map[string]struct{ forward, input broken }{
		"Docker": {forward: broken{name: "Docker", where: "chain ip filter FORWARD", why: "Docker drops it"}},
		"ufw": {
			broken{name: "ufw", where: "chain ip filter FORWARD", why: "ufw drops it"},
			broken{
				name: "ufw, to the host", to: "10.0.0.1", frame: "tcp:22", where: "chain ip filter INPUT",
				why: "ufw drops it",
			},
		},
		"firewalld": {
			broken{name: "firewalld", where: "chain inet firewalld filter_FORWARD", why: "firewalld drops it"},
			broken{
				name: "firewalld, to the host", to: "10.0.0.1", frame: "tcp:80",
				where: "chain inet firewalld filter_INPUT", why: "firewalld drops it",
			},
		},
	} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			s := newKinds(t)
			s.bridges()
			s.plug(nic.Spec{NIC: "net0", Bridge: "br0"})
			s.sh("ip neigh replace 10.0.0.11 lladdr " + s.macs["net0"] + " dev br0 nud permanent")
			s.well("net0", "outside", "tcp:443")
			r := rivals.All[program](t, s.ns)
			r.Start()
			all := slices.DeleteFunc([]broken{f.forward, f.input}, func(b broken) bool { return b.name == "" })
			for i := range all {
				all[i] = all[i].defaults(s)
				if all[i].to == "outside" {
					all[i].frame = "tcp:443" // ufw lets echo requests pass
				}
				s.named(all[i])
			}
			for _, b := range all {
				stop := s.follow(b.nic, b.to, b.frame).Stopped()
				if stop == nil {
					continue // by the cure of the one before
				}
				cure, _, _ := strings.Cut(stop.Cure, ", and the same")
				for command := range strings.SplitSeq(cure, "; ") {
					r.Must(strings.Fields(command)...)
				}
				s.well(b.nic, b.to, b.frame)
			}
		})
	}
}
