package tapmgr_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmnet/testvm"
)

// BenchmarkMigration migrates guests by each of the moves, and, in turns, to NICs of bridges that
// are up all the time, of which QEMU alone announces the guest. It reports how long they do not
// answer, how long QEMU has them paused, and how long after that their NICs are up and announced.
func BenchmarkMigration(b *testing.B) {
	const rounds = 7
	up := migrations{make: moves["bridges"], isUp: true}
	kinds := map[string]*migrations{"up": &up}
	for name, make := range moves {
		kinds[name] = &migrations{make: make}
	}
	for range rounds {
		for _, k := range kinds {
			k.migrate(newHost(b))
		}
	}
	for name, k := range kinds {
		for what, all := range k.samples {
			slices.Sort(all)
			b.Logf("%s, %s: %.1f ms", name, what, all)
		}
		short := strings.ReplaceAll(name, " ", "-")
		b.ReportMetric(k.samples["gap"][rounds/2], "ms-"+short)
		b.ReportMetric(k.samples["gap"][rounds-1], "ms-longest-"+short)
	}
	b.ReportMetric(0, "ns/op")
}

// migrations are those of one kind, and what they took in milliseconds.
type migrations struct {
	make    func(*host) move
	isUp    bool
	samples map[string][]float64
}

// migrate migrates a guest on a host that has no other.
func (m *migrations) migrate(h *host) {
	dir := h.TempDir()
	logs := [2]string{filepath.Join(dir, "source"), filepath.Join(dir, "target")}
	way := m.make(h)
	trace := func(log string) []string {
		args := []string{"-trace", "runstate_set", "-D", log, "-msg", "timestamp=on"}
		return slices.Concat(args, migratable, way.qemu)
	}
	source := h.booted(testvm.Config{Name: "S", ExtraArgs: trace(logs[0])})
	spec := way.from(source)
	spec.Prepared = false
	if err := source.Guest.UseNIC(h.context(30*time.Second), h.attach(spec).MAC, guestAddr+"/24"); err != nil {
		h.Fatal(err)
	}
	g := h.booted(testvm.Config{NoWait: true, ExtraArgs: append(trace(logs[1]), "-incoming", "defer")})
	spec = way.to(g)
	if spec.Prepared = !m.isUp; m.isUp {
		h.attach(spec)
	} else {
		h.prepare(spec)
	}
	p, done := h.stampedMigration(way.near, guestAddr, source, g)
	p.stop()
	stopped, resumed := runStateSet(h, logs[0], "finish-migrate"), runStateSet(h, logs[1], "running")
	m.note("gap", p.gap())
	m.note("paused", ms(resumed.Sub(stopped)))
	for _, name := range []string{"record", "link", "announce"} {
		if at, ok := done[name]; ok {
			m.note(name+" after RESUME", ms(at.Sub(resumed)))
		}
	}
	for _, ended := range []*guest{source, g} {
		if err := ended.Kill(); err != nil {
			h.Fatal(err)
		}
		h.gone(mustName(ended))
	}
}

func (m *migrations) note(what string, ms float64) {
	if m.samples == nil {
		m.samples = map[string][]float64{}
	}
	m.samples[what] = append(m.samples[what], ms)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// runStateSet is when QEMU set a state, by its log.
func runStateSet(h *host, log, state string) time.Time {
	h.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		h.Fatal(err)
	}
	found := regexp.MustCompile(`@(\d+)\.(\d+):runstate_set .*new_state \d+ \(` + state + `\)`).FindSubmatch(text)
	if found == nil {
		h.Fatalf("QEMU did not tell of %s:\n%s", state, text)
	}
	sec, _ := strconv.ParseInt(string(found[1]), 10, 64)
	usec, _ := strconv.ParseInt(string(found[2]), 10, 64)
	return time.UnixMicro(sec*1e6 + usec)
}
