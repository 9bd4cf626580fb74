package top

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gdamore/tcell/v2"
	"github.com/google/go-cmp/cmp"

	"vmnet/internal/leaktest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func sighting(vm string, pid int, from, to nic.Direction, drops map[string]uint64) tapmgr.Sighting {
	return tapmgr.Sighting{
		NIC:     nic.NIC{VM: vm, ID: "net0", Interface: vm + "-net0", State: "forwarding", PID: pid},
		Traffic: &nic.Traffic{FromGuest: from, ToGuest: to}, Drops: drops,
	}
}

// readings are two, two seconds apart.
func readings() (old, now Reading) {
	d := func(packets, bytes, dropped uint64) nic.Direction {
		return nic.Direction{Packets: packets, Bytes: bytes, Dropped: dropped}
	}
	start := time.Unix(1000, 0)
	old = Reading{
		At: start, Vhost: map[int]time.Duration{1: time.Second},
		NICs: []tapmgr.Sighting{
			sighting("P2", 1, d(10, 1000, 0), d(0, 0, 5), map[string]uint64{"spoofed MAC": 3}),
			sighting("P3", 2, d(1000, 1000, 0), d(0, 0, 0), nil),
			sighting("P4", 3, d(0, 0, 0), d(0, 0, 0), nil),
		},
	}
	now = Reading{
		At: start.Add(2 * time.Second), Vhost: map[int]time.Duration{1: 2 * time.Second},
		NICs: []tapmgr.Sighting{
			sighting("P2", 1, d(30, 251000, 0), d(4, 500, 25), map[string]uint64{"spoofed MAC": 103, "new": 1}),
			sighting("P3", 2, d(5, 5, 0), d(0, 0, 0), nil), // made again
			sighting("P4", 3, d(0, 0, 0), d(10, 100, 8), nil),
			sighting("P5 \x1b[31m with a very long name", 4, d(7, 7, 7), d(7, 7, 7), nil), // new
		},
	}
	return old, now
}

func TestLines(t *testing.T) {
	rows := Rows(readings())
	Sort(rows, "rate")
	got := []string{Header(80)}
	for _, r := range rows {
		got = append(got, r.Line(80))
	}
	want := []string{
		"NIC             INTERFACE          FROM      TO    PPS DROP/S VHOST STATE",
		"P2/net0         P2-net0            1.0M    2.0k     12     60   50% spoofed MAC",
		"P4/net0         P4-net0               0     400      5      4     - the guest d…",
		"P3/net0         P3-net0               0       0      0      0     - forwarding",
		"P5 \ufffd[31m with … P5 \ufffd[31m with …       0       0      0      0     - forwarding",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, width := range []int{0, 1, 20, 80, 200} {
		for _, r := range rows {
			if n := utf8.RuneCountInString(r.Line(width)); n > max(width, 70) {
				t.Errorf("%d columns of %d: %q", n, width, r.Line(width))
			}
		}
	}
}

func TestSortAndFilter(t *testing.T) {
	rows := Rows(readings())
	for by, want := range map[string]string{"rate": "P2", "packets": "P2", "drops": "P2", "cpu": "P2", "name": "P2"} {
		if Sort(rows, by); rows[0].Guest != want {
			t.Errorf("%s: %s", by, rows[0].Guest)
		}
	}
	for text, want := range map[string]int{"": 4, "p4": 1, "queue": 1, "forwarding net0": 4, "p2 p3": 0} {
		if got := Filter(rows, text); len(got) != want {
			t.Errorf("%q: %d rows, want %d", text, len(got), want)
		}
	}
}

func TestNumber(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0", 0.2: "1", 999: "999", 999.7: "1.0k", 9940: "9.9k", 12345: "12k", 1e9: "1.0G", 5e17: "500P",
	} {
		if got := number(n); got != want {
			t.Errorf("%g: %s, want %s", n, got, want)
		}
	}
	if n := len(number(math.MaxUint32)); n > 5 {
		t.Error(n)
	}
}

// TestScreen types at a simulated terminal of 80 columns.
func TestScreen(t *testing.T) {
	old, now := readings()
	reads := make(chan Reading, 2)
	reads <- old
	reads <- now
	begun := make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	s := &Screen{Interval: time.Millisecond, SortBy: "rate", Read: func(context.Context) (Reading, error) {
		begin()
		select {
		case r := <-reads:
			return r, nil
		default:
			return Reading{}, errors.New("no more")
		}
	}}
	terminal := tcell.NewSimulationScreen("UTF-8")
	terminal.SetSize(80, 10)
	done := make(chan error, 1)
	go func() { done <- s.run(t.Context(), terminal) }()
	<-begun // the terminal is initialised
	for _, r := range "s/p4" {
		for terminal.PostEvent(tcell.NewEventKey(tcell.KeyRune, r, tcell.ModNone)) != nil {
		}
	}
	for _, k := range []tcell.Key{tcell.KeyEnter, tcell.KeyDown, tcell.KeyPgDn, tcell.KeyHome} {
		for terminal.PostEvent(tcell.NewEventKey(k, 0, tcell.ModNone)) != nil {
		}
	}
	for terminal.PostEvent(tcell.NewEventKey(tcell.KeyRune, 'q', tcell.ModNone)) != nil {
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s.SortBy != "packets" || s.Filter != "p4" || s.typing {
		t.Errorf("%+v", s)
	}
}

// TestManyRows: the screen scrolls, and never shows more than it has.
func TestManyRows(t *testing.T) {
	var r Reading
	for i := range 500 {
		r.NICs = append(r.NICs, sighting(fmt.Sprintf("P%03d", i), i, nic.Direction{}, nic.Direction{}, nil))
	}
	s := &Screen{SortBy: "name", now: r, old: r, first: 10_000}
	lines := s.lines(80, 24)
	if len(lines) != 24 || !strings.HasPrefix(lines[22], "P499/net0") ||
		!strings.HasPrefix(lines[0], "500 of 500 NICs") {
		t.Errorf("%q", lines)
	}
	s.err = errors.New("gone")
	if lines := s.lines(80, 1); len(lines) < 1 || lines[0] != "cannot be read: gone" {
		t.Errorf("%q", lines)
	}
}
