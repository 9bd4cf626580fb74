package nicflags

import (
	"github.com/spf13/pflag"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/tapmgr/nic"
)

// Securities are values of the flag --port-security, for completion.
var Securities = []string{portsec.All.String(), "mac,arp,nd,dhcp,ra,vlan", "mac", none}

// AddSecurity adds the flags for port security.
func AddSecurity(fs *pflag.FlagSet, p *nic.Security) {
	fs.Var(Value("CHECKS", none, func(s string) (err error) {
		p.Checks, err = portsec.ParseChecks(s)
		return err
	}), "port-security",
		"drop what the guest forges: all, or some of mac,ip,arp,nd,dhcp,ra,vlan; ip compares with the addresses of --ip")
	fs.Var(Values("TYPE", func(s string) error {
		t, err := portsec.ParseEtherType(s)
		p.EtherTypes = append(p.EtherTypes, t)
		return err
	}), "allow-ethertype",
		"with --port-security: an EtherType besides IPv4, IPv6 and ARP that passes, such as 0x88f7 (repeatable)")
}

// Inbounds are values of the flag --allow-in, for completion.
var Inbounds = []string{"tcp:22", "tcp:443", "udp:53", "icmp", "any,from=", string(inbound.Answers)}

// AddInbound adds the flag for what may come in to the guest.
func AddInbound(fs *pflag.FlagSet, p *inbound.Rules) {
	fs.Var(Values("RULE", func(s string) error {
		r, err := inbound.ParseRule(s)
		*p = append(*p, r)
		return err
	}), "allow-in",
		"drop what comes in to the guest, but for answers and for this: tcp:PORT, udp:FIRST-LAST, icmp (ping) or any, "+
			"each also with ,from=NETWORK; answers: for nothing else (repeatable)")
}
