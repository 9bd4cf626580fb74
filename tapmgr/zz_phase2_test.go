package tapmgr

import (
	"context"
	"fmt"
	"runtime"
	"sort"
	"testing"
	"time"

	"vmnet/internal/netns"
	"vmnet/internal/step"
)

func BenchmarkVmnetPhases(b *testing.B) {
	runtime.LockOSThread()
	s := newSite(b)
	s.enter()
	ns, _ := netns.Open("")
	m, _ := New(ns)
	ph := map[string][]time.Duration{}
	var ms0, ms1 runtime.MemStats
	runtime.ReadMemStats(&ms0)
	const n = 200
	for i := range n {
		a := plannedAttachment(m, s.br, s.spec(i))
		s.ends = append(s.ends, func() { _ = a.tap.Close() })
		t0 := time.Now()
		list := inStage(ErrLink, a.hostSteps()...)
		ph["0 build list"] = append(ph["0 build list"], time.Since(t0))
		if err := step.Run(context.Background(), list, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
			t := time.Now()
			err := do(ctx)
			ph[s.Name] = append(ph[s.Name], time.Since(t))
			return err
		}); err != nil { b.Fatal(err) }
		t := time.Now()
		m.nl.Link(a.name)
		ph["Link by name"] = append(ph["Link by name"], time.Since(t))
		t = time.Now()
		m.nl.Set(a.link.Index)
		ph["empty Set"] = append(ph["empty Set"], time.Since(t))
		t = time.Now()
		request(s.sock, linkMessage(16+3, a.link.Index, 0))
		ph["empty raw Set"] = append(ph["empty raw Set"], time.Since(t))
	}
	runtime.ReadMemStats(&ms1)
	fmt.Println("KiB per attach", (ms1.TotalAlloc-ms0.TotalAlloc)/n/1024, "mallocs", (ms1.Mallocs-ms0.Mallocs)/n, "gcs", ms1.NumGC-ms0.NumGC)
	var keys []string
	for k := range ph { keys = append(keys, k) }
	sort.Strings(keys)
	for _, k := range keys { sort.Slice(ph[k], func(i, j int) bool { return ph[k][i] < ph[k][j] }); fmt.Println(n, k, ph[k][len(ph[k])/2]) }
	s.end()
	m.Close(); ns.Close()
}
