package why

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/skbdrops"
)

// Bounds of a live look.
const (
	liveWait   = 10 * time.Second // all of it
	requests   = 3                // of one probe, if none is answered
	answerWait = 300 * time.Millisecond
	watchFor   = time.Second // at least
	mostDrops  = 8           // kinds of drops that are listed for each link
)

// live is a look at the way of a frame while probes pass it.
type live struct {
	walker
	ns    *netns.NS
	nl    *rtnl.Conn
	links []*rtnl.Link    // the way
	watch *skbdrops.Watch // nil where the kernel does not say why it drops frames
	// echoes counts the answers of echo, of which the kernel drops a copy that nobody reads.
	echoes uint64
}

// Live sends probes from the host's side to the guest, and to the other guest if the frame is for
// one: ARP requests at their taps and at their bridge, and an echo request of the host. Meanwhile
// it watches what the devices of that way count, and what the kernel drops there and why. A probe
// has no answer where something on the way there or back is at fault, or in the guest. It leaves
// nothing behind, and takes at most 10 s.
func Live(ctx context.Context, q Request, f *Facts) (_ []Step, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, liveWait, fmt.Errorf("it has taken %v", liveWait))
	defer cancel()
	nl, err := rtnl.Open(q.NS)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	l := &live{walker: walker{Facts: f}, ns: q.NS, nl: nl}
	l.links = l.way()
	indexes := make([]int, len(l.links))
	for i, link := range l.links {
		indexes[i] = link.Index
	}
	if l.watch, err = skbdrops.Open(q.NS, indexes); err != nil {
		l.unknown("drop reasons", "as root, on Linux 5.17 or later with BTF", "%v", err)
		l.watch = nil
	} else {
		defer func() { err = errors.Join(err, l.watch.Close()) }()
	}
	sent, socket := l.listen()
	if socket != nil {
		defer func() { err = errors.Join(err, socket.Close()) }()
	}
	start, before := time.Now(), l.counters()
	l.probe(ctx)
	select {
	case <-ctx.Done():
	case <-time.After(watchFor - time.Since(start)):
	}
	l.counted(before, time.Since(start))
	if sent != nil {
		l.astray(sent)
	}
	l.refused(ctx, q)
	l.dropped()
	return l.steps, nil
}

// note adds a step; a live look goes on after what stops a probe.
func (l *live) note(s Step) { l.steps = append(l.steps, s) }

// guests are the NICs at both ends, or that at the one end if the frame is for no guest.
func (l *live) guests() []*NIC {
	if l.Peer == nil {
		return []*NIC{l.NIC}
	}
	return []*NIC{l.NIC, l.Peer}
}

// way lists the links of the host's namespace by which the frame and its answer go.
func (l *live) way() (found []*rtnl.Link) {
	add := func(links ...*rtnl.Link) {
		for _, link := range links {
			if link != nil && !slices.Contains(found, link) && len(found) < skbdrops.MaxLinks {
				found = append(found, link)
			}
		}
	}
	for _, n := range l.guests() {
		if n.Link != nil && n.Netns == "" {
			add(l.at(n.Link.Index), l.at(n.Link.Master))
		}
		add(l.parent(n))
	}
	if br := l.bridgeLink(); l.NIC.Netns == "" && br != nil && br.Bridge != nil {
		add(l.uplinks(br)...)
		add(l.hostSide(br))
	}
	add(l.at(l.Out.Link), l.at(l.Back.Link))
	return found
}

// counters reads what the links of the way have counted, by index.
func (l *live) counters() map[int]rtnl.Stats {
	found := map[int]rtnl.Stats{}
	for _, link := range l.links {
		if now, err := l.nl.LinkByIndex(link.Index); err == nil {
			found[link.Index] = now.Stats
		}
	}
	return found
}

// counted adds how the counters have changed.
func (l *live) counted(before map[int]rtnl.Stats, in time.Duration) {
	now := l.counters()
	for _, link := range l.links {
		was, is := before[link.Index], now[link.Index]
		text := fmt.Sprintf("in %.1fs it has received %s and sent %d", in.Seconds(), frames(is.RxPackets-was.RxPackets),
			is.TxPackets-was.TxPackets)
		for _, n := range []struct {
			what    string
			was, is uint64
		}{
			{"dropped of those received", was.RxDropped, is.RxDropped},
			{"dropped of those to send", was.TxDropped, is.TxDropped},
			{"errors", was.RxErrors + was.TxErrors, is.RxErrors + is.TxErrors},
		} {
			if n.is > n.was {
				text += fmt.Sprintf(", %s: %d", n.what, n.is-n.was)
			}
		}
		l.note(Step{Where: "counters of " + link.Name, What: text, Verdict: Passes})
	}
	for _, n := range l.guests() {
		if n.Link == nil || n.Netns != "" || n.Choked > 0 { // which was said
			continue
		}
		w := walker{Facts: l.Facts}
		seen := *n
		seen.Choked = choked(before[n.Link.Index], now[n.Link.Index])
		w.read(&seen)
		l.steps = append(l.steps, w.steps...)
	}
}

// refused adds what the NIC's switch has dropped at its port since the facts were read.
func (l *live) refused(ctx context.Context, q Request) {
	if l.Switch == nil {
		return
	}
	now := &Facts{NIC: l.NIC, Missing: map[Part]string{}}
	(&reader{q, now, l.nl}).readSwitch(ctx)
	is := &walker{Facts: now}
	was := l.portOf(l.NIC)
	if now.Switch == nil || was == nil || was.Stats == nil {
		return
	}
	p := is.portOf(l.NIC)
	if p == nil || p.Stats == nil {
		return
	}
	for _, reason := range slices.Sorted(maps.Keys(p.Stats.Drops)) {
		if n := p.Stats.Drops[reason] - was.Stats.Drops[reason]; n > 0 {
			l.note(Step{
				Where: "drops at port " + p.Name, Verdict: Unknown,
				Why:  fmt.Sprintf("the switch has dropped %s: %s", frames(n), reason),
				Cure: "vmnet switch capture " + l.NIC.Source + " --drops shows them",
			})
		}
	}
}

// dropped adds what the kernel has dropped at the links of the way since the look began.
func (l *live) dropped() {
	listed := map[int]int{}
	for _, d := range l.drops() {
		if d.Reason == "NO_SOCKET" && (d.Place == "ping_rcv" || d.Place == "") {
			own := min(d.Count, l.echoes)
			d.Count, l.echoes = d.Count-own, l.echoes-own
		}
		link := l.at(d.Link)
		if link == nil || d.Count == 0 || listed[d.Link] == mostDrops {
			continue
		}
		listed[d.Link]++
		l.note(Step{
			Where: "drops at " + link.Name, Verdict: Unknown,
			Why: fmt.Sprintf("the kernel has dropped %s of %s: %s", frames(d.Count), protocolName(d.Protocol),
				dropText(d)),
			Cure: "vmnet capture, with a filter, shows whose they are",
		})
	}
}

// drops returns what was dropped since the look began; nothing where that is not seen.
func (l *live) drops() []skbdrops.Drop {
	if l.watch == nil {
		return nil
	}
	all, err := l.watch.Drops()
	if err != nil {
		l.note(Step{Where: "drop reasons", Verdict: Unknown, Why: err.Error()})
	}
	return all
}

func frames(n uint64) string {
	if n == 1 {
		return "1 frame"
	}
	return fmt.Sprintf("%d frames", n)
}

func dropText(d skbdrops.Drop) string {
	if d.Place == "" {
		return d.Reason
	}
	return d.Reason + " in " + d.Place
}

func protocolName(p uint16) string {
	switch p {
	case etherARP:
		return "ARP"
	case etherIPv4:
		return "IPv4"
	case etherIPv6:
		return "IPv6"
	}
	return fmt.Sprintf("protocol %04x", p)
}

// EtherTypes.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherIPv6 = 0x86dd
)

// since returns what was dropped of a protocol since before.
func (l *live) since(before []skbdrops.Drop, protocol uint16) string {
	var texts []string
	for _, d := range l.drops() {
		i := slices.IndexFunc(before, func(b skbdrops.Drop) bool { b.Count = d.Count; return b == d })
		if i >= 0 {
			d.Count -= before[i].Count
		}
		if link := l.at(d.Link); d.Protocol == protocol && d.Count > 0 && link != nil && len(texts) < mostDrops {
			texts = append(texts, fmt.Sprintf("%d at %s: %s", d.Count, link.Name, dropText(d)))
		}
	}
	return strings.Join(texts, "; ")
}

// probe sends the probes.
func (l *live) probe(ctx context.Context) {
	sent := false
	for _, n := range l.guests() {
		a := n.address(netip.IPv4Unspecified())
		if !a.IsValid() {
			continue
		}
		for _, at := range l.places(n) {
			sent = true
			l.arp(ctx, at, n, a)
		}
	}
	for _, n := range l.guests() {
		if a := n.address(l.To.Addr); a.IsValid() && l.reaches(n, a) {
			sent = true
			l.echo(ctx, n, a)
		}
	}
	if !sent {
		l.note(Step{
			Where: "probe", Verdict: Unknown, Why: "none was sent: " + l.whyNone(),
			Cure: "have the guest send something while vmnet why --live runs",
		})
	}
}

// whyNone says why no probe can be sent.
func (l *live) whyNone() string {
	if a := l.NIC.address(l.To.Addr); !a.IsValid() {
		return "no address of the guest is known"
	}
	return "from the host's side no device leads to it"
}

// places lists the devices of the host at which a request reaches a guest: its tap, and that of the
// host on its bridge, or on the parent device of its macvtap.
func (l *live) places(n *NIC) (found []*rtnl.Link) {
	if n.Link != nil && n.Netns == "" && n.Link.Tun != nil && n.Link.Up {
		found = append(found, l.at(n.Link.Index))
		br := l.at(n.Link.Master)
		if n.IsOVS() {
			br = l.link(n.Source)
		}
		if br != nil && br.Up && (br.Bridge != nil || n.IsOVS()) {
			found = append(found, br)
		}
	}
	if parent := l.parent(n); parent != nil && n.Netns != "" {
		found = append(found, find(l.Links, func(l *rtnl.Link) bool {
			return l.Kind == "macvlan" && l.Lower == parent.Index && l.LowerNS < 0 && l.Up
		}))
	}
	return slices.DeleteFunc(found, func(l *rtnl.Link) bool { return l == nil })
}

// reaches reports whether the host sends to a guest's address by its own segment.
func (l *live) reaches(n *NIC, a netip.Addr) bool {
	to, err := l.nl.RouteTo(a)
	if err != nil || n.Link == nil || n.Netns != "" {
		return false
	}
	out := l.at(to)
	return out != nil && (to == n.Link.Index || to == n.Link.Master || out.Lower == n.Link.Master && out.Kind == "vlan")
}

// sender is the address from which requests are sent at a device. On a port it is the bridge's, so
// that the bridge learns nothing wrong from the answer.
func (l *live) sender(at *rtnl.Link) net.HardwareAddr {
	if br := l.at(at.Master); br != nil && br.Bridge != nil {
		return br.MAC
	}
	return at.MAC
}

// errNoAnswer is that of a probe which had none in time.
var errNoAnswer = errors.New("no answer")
