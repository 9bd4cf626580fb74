package nicflags

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// A Word is a flag with the values that it is given.
type Word struct {
	Flag   string
	Values []string // one, unless the flag is Repeatable
}

// Words returns the flags that ask for a NIC as s does, the place first, without the NIC's id. What
// a Spec leaves open has no Word. It is the inverse of [NIC.Spec].
func Words(s nic.Spec) []Word {
	var w words
	w.place(s)
	w.add("mac", s.MAC.String())
	w.number("mtu", s.MTU)
	w.port(s.Port)
	w.security(s.Security)
	w.list("allow-in", textsOf(s.AllowIn, inbound.Rule.String))
	w.rates(s.Rates)
	w.limits(s.Switch)
	if s.Queues == nic.QueuesAuto {
		w.add("queues", "auto")
	} else {
		w.number("queues", s.Queues)
	}
	if s.Vhost != nic.VhostAuto {
		w.add("vhost", string(s.Vhost))
	}
	w.add("model", s.Model)
	var options []string
	for _, k := range slices.Sorted(maps.Keys(s.DeviceOptions)) {
		options = append(options, k+"="+s.DeviceOptions[k])
	}
	w.list("device-opt", options)
	w.add("via", viaWords(s))
	if s.LinkDown {
		w.add("link", "down")
	}
	return w
}

type words []Word

// add adds a flag, unless its value is empty.
func (w *words) add(flag, value string) {
	if value != "" {
		*w = append(*w, Word{flag, []string{value}})
	}
}

func (w *words) number(flag string, n int) {
	if n != 0 {
		w.add(flag, strconv.Itoa(n))
	}
}

func (w *words) on(flag string, on bool) {
	if on {
		w.add(flag, "true")
	}
}

func (w *words) list(flag string, values []string) {
	if len(values) > 0 {
		*w = append(*w, Word{flag, values})
	}
}

func (w *words) place(s nic.Spec) {
	w.add("bridge", s.Bridge)
	w.add("iface-id", s.IfaceID)
	w.add("ovsdb", s.OVSDB)
	w.add("network", s.Network)
	w.add("routed", s.Routed)
	if s.Switch != nil {
		w.add("switch", s.Switch.Name)
	}
	if l := s.Lower; l != nil {
		w.lower(l)
	}
	ips := textsOf(s.IP, netip.Addr.String)
	w.list("ip", append(ips, textsOf(s.Security.Nets, portsec.FormatIP)...))
}

func (w *words) lower(l *nic.Lower) {
	w.add(string(l.Kind), l.Device)
	w.add("mode", l.Mode)
	w.list("source-mac", textsOf(l.Sources, net.HardwareAddr.String))
	w.on("nopromisc", l.NoPromisc)
	if l.Kind == vtap.IPVtap {
		w.list("ip", textsOf(l.Addrs, portsec.FormatIP))
		w.add("flag", l.Flag)
	}
	w.add("rx-filter", l.RxFilter)
}

func textsOf[T any](all []T, text func(T) string) (texts []string) {
	for _, v := range all {
		texts = append(texts, text(v))
	}
	return texts
}

func (w *words) port(p brport.Settings) {
	w.number("vlan", p.VLAN)
	w.add("trunk", brport.FormatVLANs(p.Trunk))
	w.number("native", p.Native)
	w.on("isolated", p.Isolated)
	w.on("hairpin", p.Hairpin)
	w.on("no-learning", p.NoLearning)
	w.on("no-flood", p.NoFlood)
	w.add("forward", p.Forward.String())
}

func (w *words) security(s nic.Security) {
	if !s.IsZero() {
		w.add("port-security", s.Checks.String())
		w.list("allow-ethertype", textsOf(s.EtherTypes, portsec.EtherType.String))
	}
}

func (w *words) limits(sw *nic.Switch) {
	if sw == nil {
		return
	}
	w.on("lock-mac", sw.LockMAC)
	w.limit("storm", sw.Storm)
	w.limit("max-addresses", sw.MaxAddresses)
}

func (w *words) limit(flag string, n int) {
	if n == nic.NoLimit {
		w.add(flag, "off")
		return
	}
	w.number(flag, n)
}

func viaWords(s nic.Spec) string {
	var all []string
	if s.Via != "" {
		all = append(all, string(s.Via))
	}
	if s.Switch != nil && s.Switch.By != "" {
		all = append(all, string(s.Switch.By))
	}
	return strings.Join(all, ",")
}

// Differences returns how to differs from from, in the words of the flags.
func Differences(from, to nic.Spec) []nic.Change {
	former, wanted := Words(from), Words(to)
	was, is := valuesOf(former), valuesOf(wanted)
	var list []nic.Change
	for _, w := range wanted {
		if was[w.Flag] != is[w.Flag] {
			list = append(list, nic.Change{Flag: w.Flag, From: was[w.Flag], To: is[w.Flag]})
		}
	}
	for _, w := range former {
		if _, both := is[w.Flag]; !both {
			list = append(list, nic.Change{Flag: w.Flag, From: was[w.Flag]})
		}
	}
	return list
}

// valuesOf returns the values by flag. A list has no order.
func valuesOf(words []Word) map[string]string {
	m := map[string]string{}
	for _, w := range words {
		m[w.Flag] = strings.Join(slices.Compact(slices.Sorted(slices.Values(w.Values))), ",")
	}
	return m
}
