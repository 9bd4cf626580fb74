package firewall

import (
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/network/nft"
)

// owner is a program that makes chains. Its cures are commands that let traffic pass.
type owner struct {
	name    string
	forward func(p passage, c *nft.Chain) string
	input   func(link string) string
}

// passage is what a cure lets pass: what comes in by a link, and the answers to that and what was
// forwarded to it. With a LAN, also what that sends there without being asked.
type passage struct{ link, lan string }

// owner tells whose a chain is by the names that programs give to their tables and chains.
func (h Host) owner(c *nft.Chain) owner {
	has := func(prefix string) bool {
		for _, other := range h.Ruleset.Chains {
			if other.Table == c.Table && strings.HasPrefix(other.Name, prefix) {
				return true
			}
		}
		return false
	}
	switch {
	case c.Table.Name == "firewalld":
		return firewalld
	case has("ufw-") || has("ufw6-"):
		return ufw
	case c.Hook == "forward" && has("DOCKER"):
		return docker
	case strings.HasPrefix(c.Table.Name, "libvirt") || has("LIBVIRT_"):
		return libvirt
	case has("KUBE-"):
		return owner{"Kubernetes", iptables("FORWARD"), inputRule}
	}
	return owner{anyTable + c.Table.Name, anyForward, inputRule}
}

// anyTable begins the name of an owner that is not known.
const anyTable = "the table "

var (
	docker = owner{"Docker", iptables("DOCKER-USER"), inputRule}
	ufw    = owner{
		"ufw", func(p passage, _ *nft.Chain) string {
			cure := "ufw route allow in on " + p.link
			if p.lan != "" {
				cure += "; ufw route allow out on " + p.link
			}
			return cure
		},
		func(link string) string { return "ufw allow in on " + link },
	}
	firewalld = owner{
		"firewalld", func(p passage, _ *nft.Chain) string {
			if p.lan == "" {
				return trusted(p.link)
			}
			in := "firewall-cmd --zone=ZONE --add-"
			return fmt.Sprintf("%sinterface=%s; %[1]sinterface=%[3]s; %[1]sforward; ZONE is that of %[2]s",
				in, p.lan, p.link)
		}, trusted,
	}
	libvirt = owner{"libvirt", anyForward, inputRule}
)

func trusted(link string) string {
	return fmt.Sprintf("firewall-cmd --zone=trusted --add-interface=%s, and the same with --permanent", link)
}

// Integrable reports whether vmnet can change what a chain's owner lets pass.
func (o Obstacle) Integrable() bool {
	return slices.Contains([]string{docker.name, ufw.name, firewalld.name}, o.Owner)
}

// iptables returns a cure by two rules of a chain.
func iptables(chain string) func(passage, *nft.Chain) string {
	return func(p passage, c *nft.Chain) string {
		program, which := "iptables", " -m conntrack --ctstate RELATED,ESTABLISHED,DNAT"
		if c.Table.Family == "ip6" {
			program = "ip6tables"
		}
		if p.lan != "" {
			which = ""
		}
		return fmt.Sprintf("%s -I %s -i %s -j ACCEPT; %[1]s -I %[2]s -o %[3]s%s -j ACCEPT",
			program, chain, p.link, which)
	}
}

// anyForward is the cure for a chain that nothing else is known of.
func anyForward(p passage, c *nft.Chain) string {
	which := " ct state established,related"
	if p.lan != "" {
		which = ""
	}
	insert := fmt.Sprintf("nft insert rule %s %s %s", c.Table.Family, c.Table.Name, c.Name)
	return fmt.Sprintf("%s iifname %s accept; %[1]s oifname %[2]s%s accept", insert, p.link, which)
}

func inputRule(link string) string { return "allow what guests may use of the host on " + link }
