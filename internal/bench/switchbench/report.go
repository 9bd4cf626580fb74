package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// write writes tables, plots and samples into dir: those of switches, and those of guests that
// share their memory, if there are any.
func (r *results) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	switches, rings := r.parts()
	return errors.Join(switches.writeAs(dir, "switch", switches.plots()),
		rings.writeAs(dir, "vhost-user", rings.ringPlots()))
}

// parts returns the results in two parts: of switches, and of guests that share their memory.
func (r *results) parts() (switches, rings *results) {
	copies := [2]results{*r, *r}
	for i := range copies {
		copies[i].Figures, copies[i].Missing = map[string][]sample{}, nil
	}
	part := func(text, end string) *results {
		name, _, _ := strings.Cut(text, end)
		if ringPeerNamed(strings.TrimSuffix(name, beforeSuffix)) != nil {
			return &copies[1]
		}
		return &copies[0]
	}
	for key, samples := range r.Figures {
		part(key, "/").Figures[key] = samples
	}
	for _, m := range r.Missing {
		p := part(m, ": ")
		p.Missing = append(p.Missing, m)
	}
	return &copies[0], &copies[1]
}

// writeAs writes results to files of that name, unless there are none.
func (r *results) writeAs(dir, name string, plots []plot) error {
	if len(r.Figures) == 0 {
		return nil
	}
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := r.table(&text); err != nil {
		return err
	}
	files := map[string]string{name + ".json": string(raw) + "\n"}
	for _, p := range plots {
		files[p.file] = p.svg()
		fmt.Fprintf(&text, "\n![%s](%s)\n", p.title, p.file)
	}
	files[name+".md"] = text.String()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// table writes all figures as Markdown.
func (r *results) table(w io.Writer) error {
	var t strings.Builder
	switches, rings := r.parts()
	for i, part := range []*results{switches, rings} {
		if len(part.Figures) == 0 && (i == 1 || len(rings.Figures) > 0) {
			continue
		}
		part.head(&t, []string{"The switch and others", "Guests that share their memory"}[i])
		if i == 0 {
			part.switchTables(&t)
		} else {
			part.ringTables(&t)
		}
		part.goalsTable(&t)
	}
	_, err := io.WriteString(w, t.String())
	return err
}

func (r *results) head(t *strings.Builder, title string) {
	fmt.Fprintf(t,
		"# %s\n\nMedians of %d samples of %g s, taken in turns within one run\n(`make bench-switch`, %s), on %s.\n",
		title, r.Repeats, r.Seconds, r.Date, strings.Join(r.Machine, ", "))
	fmt.Fprintf(t, "\nVersions:\n\n- %s\n", strings.Join(r.Versions, "\n- "))
	for _, m := range r.Missing {
		fmt.Fprintf(t, "\n**Not measured**: %s\n", m)
	}
}

// switchTables writes the figures of switches.
func (r *results) switchTables(t *strings.Builder) {
	t.WriteString(`
Sender, switch and receiver share the machine's processors: CPU seconds per GB (of the whole
machine) say more than Gb/s. Packets are UDP of 64 bytes, sent as fast as the sender can, so loss is
the rule. Round trips are TCP of 64 bytes with everything on one CPU. × is relative to the kernel
bridge. In a guest's rows a program takes the place of QEMU at each end, which costs as much as the
switch itself. Samples that other programs on the machine disturbed do not count; * marks figures
that have no others.

| switch, 2 ports | TCP, 1 stream, Gb/s | × | CPU s/GB | 4 streams, Gb/s | × | CPU s/GB | 64 bytes, kpps | × | loss % | CPU µs/packet | round trip p50, µs | p99, µs |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
`)
	for _, p := range peers() {
		r.row(t, p)
	}
	r.pairsTable(t)
	r.portsTable(t)
	r.changesTable(t)
}

func (r *results) row(t *strings.Builder, p *peer) {
	name := p.name
	if p.ours {
		name = "**" + name + "**"
	}
	cells := []string{name}
	for _, c := range []struct {
		work, figure string
		ratio        bool
	}{
		{tcp1, gbps, true},
		{tcp1, secPerGB, false},
		{tcp4, gbps, true},
		{tcp4, secPerGB, false},
		{small, kpps, true},
		{small, loss, false},
		{small, usPerPkt, false},
		{trip, p50, false},
		{trip, p99, false},
	} {
		f := ref{peer: p.name, work: c.work, figure: c.figure}
		cells = append(cells, r.cell(f))
		if c.ratio {
			base := f
			base.peer = bridgeName
			cells = append(cells, number(r.median(f)/r.median(base)))
		}
	}
	if r.has(p.name) {
		fmt.Fprintf(t, "| %s |\n", strings.Join(cells, " | "))
	}
}

// cell returns a figure's median, marked if it is not reliable.
func (r *results) cell(f ref) string {
	text := number(r.median(f))
	if _, disturbed := r.samples(f); disturbed && text != "" {
		text += "*"
	}
	return text
}

// number formats three significant digits; a figure that was not measured is empty.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return ""
	case math.IsInf(v, 0):
		return "∞"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *results) portsTable(t *strings.Builder) {
	t.WriteString("\n| ports | " + strings.Join(manyPorts, " | ") + " |\n|---" + strings.Repeat("|---",
		len(manyPorts)) + "|\n")
	for _, c := range []struct{ text, work, figure string }{
		{"TCP, Gb/s", tcp1, gbps},
		{"64 bytes, kpps", small, kpps},
	} {
		for _, n := range portCounts {
			fmt.Fprintf(t, "| %d, %s |", n, c.text)
			for _, p := range manyPorts {
				fmt.Fprintf(t, " %s |", r.cell(ref{peer: p, work: c.work, figure: c.figure, ports: n}))
			}
			t.WriteString("\n")
		}
	}
}

// changesTable compares our switches with those of another build, if there is one.
func (r *results) changesTable(t *strings.Builder) {
	head := "\n| now, of before | " + strings.Join([]string{
		tcp1, secPerGB, tcp4, secPerGB, kpps, loss + ", before",
		loss + ", now", p50, p99,
	}, " | ") + " |\n|" + strings.Repeat("---|", 10) + "\n"
	for _, p := range before() {
		cells := []string{strings.TrimSuffix(p.name, beforeSuffix)}
		old := func(work, figure string) float64 { return r.median(ref{peer: p.name, work: work, figure: figure}) }
		now := func(work, figure string) float64 { return r.median(ref{peer: cells[0], work: work, figure: figure}) }
		ratio := func(work, figure string) string { return number(now(work, figure) / old(work, figure)) }
		cells = append(cells, ratio(tcp1, gbps), ratio(tcp1, secPerGB), ratio(tcp4, gbps),
			ratio(tcp4, secPerGB), ratio(small, kpps),
			number(old(small, loss)), number(now(small, loss)), ratio(trip, p50), ratio(trip, p99))
		if r.has(p.name) {
			fmt.Fprintf(t, "%s| %s |\n", head, strings.Join(cells, " | "))
			head = ""
		}
	}
}

func (r *results) goalsTable(t *strings.Builder) {
	t.WriteString("\n| goal | wanted | reached | |\n|---|---|---|---|\n")
	for _, g := range goals() {
		v, ok := r.reached(g)
		if math.IsNaN(v) {
			continue
		}
		sign, verdict := "≥", "behind"
		if g.atMost {
			sign = "≤"
		}
		if ok {
			verdict = "yes"
		}
		unit := ""
		if g.b.peer != "" {
			unit = "×"
		}
		for _, f := range []ref{g.a, g.b} {
			if _, disturbed := r.samples(f); disturbed && f.peer != "" {
				unit = strings.TrimRight(unit, "*") + "*"
			}
		}
		fmt.Fprintf(t, "| %s | %s %s%s | %s%s | %s |\n", g.text, sign, number(g.want), strings.TrimRight(unit, "*"),
			number(v), unit, verdict)
	}
}
