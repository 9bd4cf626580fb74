package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ringGoals are those for guests that share their memory. Ratios are of near processors.
func ringGoals() []goal {
	at := func(peer, work, figure string) ref { return ref{peer: peer, work: work, figure: figure, at: near} }
	polls := func(work string) ref { return at(ringPolls, work, mpps) }
	return []goal{
		{"64 bytes, of Open vSwitch with DPDK", polls(ring64), at(ringOVS, ring64, mpps), 1.2, false},
		{"... of DPDK's vhost PMD", polls(ring64), at(ringPMD, ring64, mpps), 0.9, false},
		{"1500 bytes, of Open vSwitch with DPDK", polls(ring1500), at(ringOVS, ring1500, mpps), 1.8, false},
		{"... of DPDK's vhost PMD", polls(ring1500), at(ringPMD, ring1500, mpps), 1.5, false},
		{"64 KiB, of DPDK's vhost PMD", polls(ring64K), at(ringPMD, ring64K, mpps), 1.1, false},
		{"64 bytes, of the bridge between taps", polls(ring64), at(ringTaps, ring64, mpps), 25, false},
		{
			"... its CPU ns/frame", at(ringPolls, ring64, nsPerFrame), at(ringTaps, ring64, nsPerFrame), 1.0 / 12, true,
		},
		{"64 bytes, event driven of polling", at(ringEvent, ring64, mpps), polls(ring64), 0.9, false},
		{"one frame, event driven, µs", at(ringEvent, hop, usPerHop), ref{}, 3.5, true},
		{"one frame, polling, µs", at(ringPolls, hop, usPerHop), ref{}, 1, true},
	}
}

const ringHead = `
Frames go round between two guests, both of which are one testpmd of DPDK (virtio-user) on one
processor, with the switch on another one: 128 frames in each direction, 4 of 64 KiB, or a single
one. The guests poll and are never notified; a guest of KVM would cost exits and interrupts as well.
× is relative to Open vSwitch with DPDK. CPU per frame is that of switch and guests, and in brackets
that of the switch. The bridge has taps, whose ends are one program. Two processors are near if a
cache line's round trip between them takes at most 250 ns, and samples count by that; in a virtual
machine it changes.

`

// ringTables writes the figures of guests that share their memory.
func (r *results) ringTables(t *strings.Builder) {
	var known []*ringPeer
	for _, p := range append(ringPeers(), ringsBefore()...) {
		if r.has(p.name) {
			known = append(known, p)
		}
	}
	t.WriteString(ringHead)
	for _, at := range []string{near, far} {
		if !r.hasRing(known, at) {
			continue
		}
		fmt.Fprintf(t, "| %s processors | 64 bytes, Mpps | × | CPU ns/frame | 1500 bytes, Mpps | × | Gb/s |"+
			" 64 KiB, Gb/s | one frame, µs a hop | samples |\n|---|---|---|---|---|---|---|---|---|---|\n", at)
		for _, p := range known {
			r.ringRow(t, p, at)
		}
		t.WriteString("\n")
	}
}

func (r *results) hasRing(peers []*ringPeer, at string) bool {
	return slices.ContainsFunc(peers, func(p *ringPeer) bool { return r.ringSamples(p, at) > 0 })
}

// ringSamples returns the number of samples of the figure that has the fewest of them, but some.
func (r *results) ringSamples(p *ringPeer, at string) (least int) {
	for _, w := range ringWorks() {
		samples, _ := r.samples(ref{peer: p.name, work: w.name, at: at})
		if n := len(samples); n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}

func (r *results) ringRow(t *strings.Builder, p *ringPeer, at string) {
	n := r.ringSamples(p, at)
	if n == 0 {
		return
	}
	name := p.name
	if p.ours {
		name = "**" + name + "**"
	}
	figure := func(work, figure string) ref { return ref{peer: p.name, work: work, figure: figure, at: at} }
	ratio := func(work string) string {
		f := figure(work, mpps)
		base := f
		base.peer = ringOVS
		return number(r.median(f) / r.median(base))
	}
	cpu := r.cell(figure(ring64, nsPerFrame))
	if of := r.cell(figure(ring64, nsBackend)); of != "" && p.name != ringTaps {
		cpu += " (" + of + ")"
	}
	cells := []string{
		name, r.cell(figure(ring64, mpps)), ratio(ring64), cpu,
		r.cell(figure(ring1500, mpps)), ratio(ring1500), r.cell(figure(ring1500, gbps)),
		r.cell(figure(ring64K, gbps)), r.cell(figure(hop, usPerHop)), fmt.Sprint(n),
	}
	fmt.Fprintf(t, "| %s |\n", strings.Join(cells, " | "))
}

func (r *results) ringPlots() []plot {
	return []plot{
		r.ringPlot("vhost-user-frames.svg", "Frames that go round", "millions per second, more is better",
			map[string]string{"64 bytes": ring64, "1500 bytes": ring1500}, mpps),
		r.ringPlot("vhost-user-long.svg", "Frames of 64 KiB that go round", "Gb/s, more is better",
			map[string]string{"64 KiB": ring64K}, gbps),
		r.ringPlot("vhost-user-hop.svg", "One frame", "µs from guest to guest, less is better",
			map[string]string{"64 bytes": hop}, usPerHop),
	}
}

// ringPlot is a plot of a figure of near processors by workload.
func (r *results) ringPlot(file, title, unit string, works map[string]string, figure string) plot {
	p := plot{file: file, title: title, unit: unit, series: slices.Sorted(maps.Keys(works))}
	slices.Reverse(p.series) // 64 bytes first
	for _, peer := range ringPeers() {
		g := group{label: peer.name, ours: peer.ours}
		for _, name := range p.series {
			g.values = append(g.values, r.median(ref{peer: peer.name, work: works[name], figure: figure, at: near}))
		}
		p.groups = append(p.groups, g)
	}
	return p
}
