package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// results are all samples of a run, in the form of switch.json.
type results struct {
	Date     string              `json:"date"`
	Repeats  int                 `json:"repeats"`
	Seconds  float64             `json:"seconds"` // of each sample
	Machine  []string            `json:"machine"`
	Versions []string            `json:"versions"`
	Missing  []string            `json:"missing,omitempty"`
	Figures  map[string][]sample `json:"figures"` // by keyOf
}

// disturbing is the share of CPU time used by others above which a sample counts as disturbed.
const disturbing = 0.05

func keyOf(peer string, ports int, work string) string {
	return fmt.Sprintf("%s/%d/%s", peer, ports, work)
}

// A ref names one figure: that of a switch with two ports, unless it has another number.
type ref struct {
	peer, work, figure string
	ports              int
	at                 string // distance of the processors: near, far, or empty for any
}

// samples returns a figure's undisturbed samples, or all if there are none. They are of processors
// at that distance.
func (r *results) samples(f ref) (all []sample, disturbed bool) {
	var quiet []sample
	for _, s := range r.Figures[keyOf(f.peer, max(2, f.ports), f.work)] {
		if f.at != "" && s.Distance.kind() != f.at {
			continue
		}
		all = append(all, s)
		if s.Foreign <= disturbing {
			quiet = append(quiet, s)
		}
	}
	if len(quiet) > 0 {
		return quiet, false
	}
	return all, true
}

// median returns the median of a figure's samples; NaN if there is none.
func (r *results) median(f ref) float64 {
	var all []float64
	samples, _ := r.samples(f)
	for _, s := range samples {
		if v, ok := s.Values[f.figure]; ok {
			all = append(all, v)
		}
	}
	return median(all)
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// has reports whether there is any figure of a switch.
func (r *results) has(peer string) bool {
	for key := range r.Figures {
		if strings.HasPrefix(key, peer+"/") {
			return true
		}
	}
	return false
}

// A goal is a ratio of two figures that the switch should reach.
type goal struct {
	text   string
	a, b   ref // b without a peer: no ratio
	want   float64
	atMost bool // less is better
}

// goals are the project's goals.
func goals() []goal { return slices.Concat(switchGoals(), pairGoals(), ringGoals()) }

func switchGoals() []goal {
	tcp := func(peer string) ref { return ref{peer: peer, work: tcp1, figure: gbps} }
	four := func(peer string) ref { return ref{peer: peer, work: tcp4, figure: gbps} }
	udp := func(peer string) ref { return ref{peer: peer, work: small, figure: kpps} }
	rtt := func(peer, q string) ref { return ref{peer: peer, work: trip, figure: q} }
	cost := func(peer string) ref { return ref{peer: peer, work: tcp1, figure: secPerGB} }
	with := func(f ref, ports int) ref { f.ports = ports; return f }
	return []goal{
		{"TCP, 1 stream, of the kernel bridge", tcp(oursName), tcp(bridgeName), 0.75, false},
		{"TCP, 1 stream, of Open vSwitch with userspace-tso", tcp(oursName), tcp(ovsTSOName), 1.05, false},
		{"... its CPU s/GB", cost(oursName), cost(ovsTSOName), 0.80, true},
		{"TCP, 4 streams, of the kernel bridge", four(oursName), four(bridgeName), 0.57, false},
		{"TCP, 4 streams, of Open vSwitch with userspace-tso", four(oursName), four(ovsTSOName), 1.20, false},
		{"TCP, 4 streams, of vde_switch", four(oursName), four(vdeName), 7.5, false},
		{"CPU s/GB, 1 stream, of the kernel bridge", cost(oursName), cost(bridgeName), 1.5, true},
		{"TCP, 1 stream, of the C reference", tcp(oursName), tcp(superName), 1.0, false},
		{"TCP, 4 streams, of the C reference", four(oursName), four(superName), 1.0, false},
		{"64-byte packets, of the C reference", udp(oursName), udp(superName), 1.0, false},
		{"without offloads: TCP, 1 stream, of vde_switch", tcp(oursPlain), tcp(vdeName), 1.8, false},
		{"without offloads: TCP, 1 stream, of Open vSwitch", tcp(oursPlain), tcp(ovsName), 2.0, false},
		{"without offloads: TCP, 1 stream, of the C reference", tcp(oursPlain), tcp(plainName), 1.0, false},
		{"64-byte packets, of the kernel bridge", udp(oursName), udp(bridgeName), 1.2, false},
		{"64-byte packets, of vde_switch", udp(oursName), udp(vdeName), 1.4, false},
		{"64-byte packets, of Open vSwitch", udp(oursName), udp(ovsName), 1.6, false},
		{"64-byte packets, loss in %", ref{peer: oursName, work: small, figure: loss}, ref{}, 20, true},
		{"round trip p50, of vde_switch", rtt(oursName, p50), rtt(vdeName, p50), 1.0, true},
		{"round trip p99 in µs", rtt(oursName, p99), ref{}, 20, true},
		{"64 ports, TCP, of 2 ports", with(tcp(oursName), 64), tcp(oursName), 0.98, false},
		{"64 ports, 64-byte packets, of 2 ports", with(udp(oursName), 64), udp(oursName), 0.98, false},
		{"64 ports, TCP, of vde_switch's", with(tcp(oursName), 64), with(tcp(vdeName), 64), 4, false},
	}
}

// reached returns the goal's figure, and whether it meets the goal.
func (r *results) reached(g goal) (float64, bool) {
	v := r.median(g.a)
	if g.b.peer != "" {
		v /= r.median(g.b)
	}
	if g.atMost {
		return v, v <= g.want
	}
	return v, v >= g.want
}
