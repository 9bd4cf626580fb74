package why

import (
	"slices"
	"strings"

	"vmnet/internal/endpoint"
	"vmnet/internal/network/firewall"
)

// ingress asks the chains at the guest's interface itself.
func (w *walker) ingress() {
	l := w.NIC.Link
	if w.Firewall == nil || l == nil || w.NIC.Netns != "" {
		return
	}
	p := w.ip(l.Name, "")
	found := w.Firewall.Trace("ingress", "netdev", p)
	if w.NIC.Switch { // it keeps the frames that it takes from the kernel's own stack
		found = slices.DeleteFunc(found, func(c firewall.Passed) bool {
			return strings.HasPrefix(c.Chain, "netdev "+endpoint.ClaimTable+l.Name)
		})
	}
	w.report(found)
}

// filtered asks the chains for bridged frames that come in.
func (w *walker) filtered() {
	w.bridgeChains("prerouting", "")
}

// bridgeChains asks the chains of family bridge at a hook. out is the port by which the frame
// leaves; empty for none.
func (w *walker) bridgeChains(hook, out string) {
	if w.Firewall == nil {
		return
	}
	p := w.ip(w.NIC.Link.Name, out)
	p.InBridge = w.bridgeLink().Name
	if out != "" {
		p.OutBridge = p.InBridge
	}
	w.report(w.Firewall.Trace(hook, "bridge", p))
}

// bridged asks the chains that a frame passes on its way from port to port: those of family bridge,
// and with br_netfilter those for packets too.
func (w *walker) bridged(out string) {
	if w.bridgeChains("forward", out); w.stopped {
		return
	}
	p := w.ip("", "")
	setting := map[string]string{
		"ip": "bridge-nf-call-iptables", "ip6": "bridge-nf-call-ip6tables", "arp": "bridge-nf-call-arptables",
	}[p.Protocol]
	if w.Settings["net/bridge/"+setting] != "1" || w.unread() {
		return
	}
	br := w.bridgeLink().Name
	p.In, p.Out = br, br
	found := w.Firewall.Trace("forward", p.Protocol, p)
	for i := range found {
		found[i].Cure = "sysctl -w net.bridge." + setting + "=0; or " + found[i].Cure
		found[i].Chain += ", by br_netfilter"
	}
	w.report(found)
	if !w.stopped {
		w.pass("br_netfilter", "bridged frames pass the chains for packets, which let it pass")
	}
}

// chains asks the chains for packets at a hook of the host's own stack.
func (w *walker) chains(hook, in, out string) {
	if w.unread() {
		return
	}
	p := w.ip(in, out)
	found := w.Firewall.Trace(hook, p.Protocol, p)
	w.report(found)
	if len(found) == 0 && (hook == "forward" || hook == "input") {
		w.pass("chains at "+hook, "let it pass")
	}
	if hook == "forward" || hook == "input" {
		w.legacy()
	}
}

// unread reports whether no rules could be read, and adds that once.
func (w *walker) unread() bool {
	if w.Firewall != nil {
		return false
	}
	w.unseen(PartFirewall, "nft list ruleset, as root")
	return true
}

// legacy adds once that nft does not list the rules of iptables-legacy.
func (w *walker) legacy() {
	if w.stopped || len(w.Firewall.Legacy) == 0 || w.said("iptables-legacy") {
		return
	}
	w.unknown("iptables-legacy", "iptables-legacy -vS FORWARD",
		"nft does not list its rules, which may drop the packet")
}

// report adds the chains that drop the frame, or may do so.
func (w *walker) report(found []firewall.Passed) {
	for _, c := range found {
		where := "chain " + c.Chain
		if c.Sure {
			w.stop(where, c.Cure, "%s drops it", c.Owner)
			return
		}
	}
	for _, c := range found {
		w.unknown("chain "+c.Chain, c.Cure, "%s may drop it: a rule looks at what is not known here", c.Owner)
	}
}
