package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmnet/bridge/vswitch/control"
)

// A tapPair is what connects two taps whose ends are one program, taps.c, as a VMM has them. The
// taps, and a switch's process, are new for each sample.
type tapPair struct {
	name string
	args []string // of our switch; nil for the bridge
	ours bool
}

// Names of the pairs to which ratios refer, and of their workloads.
const (
	tapBridge = "taps, kernel bridge"
	tapPacket = "taps, vmnet switch, --fast-path off"
	tapFast   = "taps, vmnet switch"

	tap64, tap1500, tap64K = "tap64", "tap1500", "tap64k"
)

func tapPairs() []*tapPair {
	return []*tapPair{
		{name: tapBridge},
		{name: tapPacket, args: []string{"--fast-path", "off"}, ours: true},
		{name: tapFast, args: []string{"--fast-path", "auto"}, ours: true},
	}
}

// A tapSize is a workload, with the length of its frames in bytes.
type tapSize struct {
	work  string
	bytes int
}

var tapSizes = []tapSize{{tap64, 64}, {tap1500, 1514}, {tap64K, 65000}}

// pairSeries returns what to measure of pairs of taps. Those of another build have no fast path.
func (h *harness) pairSeries(o options) (all []series) {
	pairs := tapPairs()
	if o.before != "" {
		pairs = append(pairs, &tapPair{name: tapPacket + beforeSuffix, args: []string{}, ours: true})
	}
	for _, p := range pairs {
		if !o.peers.MatchString(p.name) {
			continue
		}
		for _, s := range tapSizes {
			if o.work.MatchString(s.work) {
				all = append(all, series{keyOf(p.name, 2, s.work), func(long time.Duration) (sample, error) {
					got, err := h.measurePair(p, s.bytes, long)
					if err != nil {
						err = fmt.Errorf("%s over %s: %w", s.work, p.name, err)
					}
					return got, err
				}})
			}
		}
	}
	return all
}

func (h *harness) measurePair(p *tapPair, size int, long time.Duration) (s sample, err error) {
	l := &lan{}
	defer l.close()
	if l.in, l.nl, err = l.namespace(); err != nil {
		return s, err
	}
	e, err := newEnd(&station{ns: l.in}, []string{h.tools.taps, portName(0), portName(1), strconv.Itoa(size)})
	if err != nil {
		return s, err
	}
	defer e.close()
	if err = e.ready(); err == nil {
		err = p.join(l, &h.tools)
	}
	if err != nil {
		return s, err
	}
	time.Sleep(settle)
	pids := slices.Clone(h.kernel)
	for _, proc := range l.procs {
		pids = append(pids, proc.cmd.Process.Pid)
	}
	before, err := loadNow(append(pids, e.cmd.Process.Pid), nil, nil)
	n := e.count()
	time.Sleep(long)
	n = e.count() - n
	after, err2 := loadNow(append(pids, e.cmd.Process.Pid), nil, nil)
	if err = errors.Join(err, err2, e.alive()); err == nil && n == 0 {
		err = errors.New("no frame comes")
	}
	if err != nil {
		return s, err
	}
	spent := after.since(before, h.cpus)
	s.Foreign, s.Values = spent.foreign, map[string]float64{
		kpps: float64(n) / spent.wall / 1e3, gbps: float64(n) * float64(size) * 8 / spent.wall / 1e9,
		usPerPkt: (after.own - before.own) / float64(n) * 1e6,
	}
	return s, nil
}

// join connects the taps.
func (p *tapPair) join(l *lan, t *tools) error {
	if !p.ours {
		return errors.Join(l.makeBridge(), l.bridgePorts(portName(0), portName(1)))
	}
	for i := range 2 {
		link, err := l.nl.LinkByName(portName(i))
		if err == nil {
			err = l.nl.LinkSetUp(link)
		}
		if err != nil {
			return err
		}
	}
	theirs := *t
	if strings.HasSuffix(p.name, beforeSuffix) {
		theirs.vmnet = t.before
	}
	socket, err := l.oursWith(&theirs, p.args, "packet", portName(0), portName(1))
	if err != nil {
		return err
	}
	return awaitOurs(socket)
}

// awaitOurs waits until our switch serves its socket.
func awaitOurs(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := control.Dial(ctx, socket)
	for ; err != nil && ctx.Err() == nil; c, err = control.Dial(ctx, socket) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	_, err = c.Info(ctx)
	return errors.Join(err, c.Close())
}

// pairGoals are those of the fast path.
func pairGoals() []goal {
	of := func(work, figure string) (fast, packet ref) {
		f := ref{peer: tapFast, work: work, figure: figure}
		p := f
		p.peer = tapPacket
		return f, p
	}
	var all []goal
	for _, w := range []struct{ work, text string }{{tap64, "64 bytes"}, {tap1500, "1500 bytes"}} {
		fast, packet := of(w.work, kpps)
		all = append(all, goal{"fast path, " + w.text + ", of a packet port", fast, packet, 1.35, false})
		fast, packet = of(w.work, usPerPkt)
		all = append(all, goal{"... its CPU µs/packet", fast, packet, 0.45, true})
	}
	return all
}

// pairsTable writes the figures of pairs of taps, if there are any.
func (r *results) pairsTable(t *strings.Builder) {
	var rows []string
	for _, p := range append(tapPairs(), &tapPair{name: tapPacket + beforeSuffix, ours: true}) {
		if r.has(p.name) {
			rows = append(rows, r.pairRow(p))
		}
	}
	if len(rows) == 0 {
		return
	}
	t.WriteString(`
Between two taps whose ends are one program, as QEMU has them, with 256 frames on their way in each
direction, or 32 super-frames. × is relative to the kernel bridge. CPU is that of that program, the
switch and the kernel's threads.

| between taps | 64 bytes, kpps | × | CPU µs/packet | 1500 bytes, kpps | × | CPU µs/packet | 64 KiB, Gb/s | × | CPU µs/packet |
|---|---|---|---|---|---|---|---|---|---|
` + strings.Join(rows, ""))
}

func (r *results) pairRow(p *tapPair) string {
	name := strings.TrimPrefix(p.name, "taps, ")
	if p.ours {
		name = "**" + name + "**"
	}
	cells := []string{name}
	for _, s := range tapSizes {
		figure := kpps
		if s.work == tap64K {
			figure = gbps
		}
		f := ref{peer: p.name, work: s.work, figure: figure}
		base := f
		base.peer = tapBridge
		cost := f
		cost.figure = usPerPkt
		cells = append(cells, r.cell(f), number(r.median(f)/r.median(base)), r.cell(cost))
	}
	return fmt.Sprintf("| %s |\n", strings.Join(cells, " | "))
}
