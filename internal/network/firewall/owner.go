package firewall

import (
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/network/nft"
)

// owner is a program that makes chains. Its cures are commands that let a bridge's traffic pass.
type owner struct {
	name    string
	forward func(bridge string, c *nft.Chain) string
	input   func(bridge string) string
}

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
	return owner{fmt.Sprintf("the table %s", c.Table.Name), anyForward, inputRule}
}

var (
	docker = owner{"Docker", func(bridge string, c *nft.Chain) string {
		return iptables("DOCKER-USER")(bridge, c)
	}, inputRule}
	ufw = owner{
		"ufw", func(bridge string, _ *nft.Chain) string { return "ufw route allow in on " + bridge },
		func(bridge string) string { return "ufw allow in on " + bridge },
	}
	firewalld = owner{
		"firewalld", func(bridge string, _ *nft.Chain) string { return trusted(bridge) }, trusted,
	}
	libvirt = owner{"libvirt", anyForward, inputRule}
)

func trusted(bridge string) string {
	return fmt.Sprintf("firewall-cmd --zone=trusted --add-interface=%s, and the same with --permanent", bridge)
}

// Integrable reports whether vmnet can change what a chain's owner lets pass.
func (o Obstacle) Integrable() bool {
	return slices.Contains([]string{docker.name, ufw.name, firewalld.name}, o.Owner)
}

// iptables returns a cure by two rules of a chain.
func iptables(chain string) func(string, *nft.Chain) string {
	return func(bridge string, c *nft.Chain) string {
		program := "iptables"
		if c.Table.Family == "ip6" {
			program = "ip6tables"
		}
		return fmt.Sprintf("%s -I %s -i %s -j ACCEPT; %[1]s -I %[2]s -o %[3]s -m conntrack "+
			"--ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT", program, chain, bridge)
	}
}

// anyForward is the cure for a chain that nothing else is known of.
func anyForward(bridge string, c *nft.Chain) string {
	return fmt.Sprintf("nft insert rule %s %s %s iifname %s accept; "+
		"nft insert rule %[1]s %[2]s %[3]s oifname %[4]s ct state established,related accept",
		c.Table.Family, c.Table.Name, c.Name, bridge)
}

func inputRule(bridge string) string { return "allow what guests may use of the host on " + bridge }
