// Package top turns two readings of guests' NICs into a table of rates, for a screen that is
// repeated. Users choose the names in it.
package top

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"vmnet/internal/cli/console"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// A Reading is what there was at one time.
type Reading struct {
	At    time.Time
	NICs  []tapmgr.Sighting
	Vhost map[int]time.Duration // CPU time of the vhost threads, by the VMM's pid
}

// A Row is a NIC with its rates between two readings. Its JSON keys are stable.
type Row struct {
	Guest     string  `json:"guest"`
	NIC       string  `json:"nic"`
	Interface string  `json:"interface"`
	State     string  `json:"state"`
	From      Rate    `json:"from_guest"`
	To        Rate    `json:"to_guest"`
	Dropped   float64 `json:"dropped_per_second"`  // of all that is dropped
	Reason    string  `json:"reason,omitempty"`    // of most of the drops
	VhostCPU  float64 `json:"vhost_cpu,omitempty"` // processors that the VMM's vhost threads use
}

// Rate is what passed in a second.
type Rate struct {
	Bits    float64 `json:"bits_per_second"`
	Packets float64 `json:"packets_per_second"`
}

// notRead is the reason of drops at a queue that the guest does not read.
const notRead = "the guest does not read its queue"

// Rows returns the NICs of the second reading, with rates since the first. A NIC that is new, or
// whose host interface was made again, has none yet.
func Rows(old, now Reading) []Row {
	type key struct{ vm, id, name string }
	before := map[key]*tapmgr.Sighting{}
	for i := range old.NICs {
		n := &old.NICs[i]
		before[key{n.VM, n.ID, n.Interface}] = n
	}
	seconds := now.At.Sub(old.At).Seconds()
	rows := []Row{}
	for i := range now.NICs {
		n := &now.NICs[i]
		r := Row{Guest: n.VM, NIC: n.ID, Interface: n.Interface, State: string(n.State)}
		was := before[key{n.VM, n.ID, n.Interface}]
		if was != nil && was.Traffic != nil && n.Traffic != nil && seconds > 0 && !restarted(was.Traffic, n.Traffic) {
			r.From = rate(was.Traffic.FromGuest, n.Traffic.FromGuest, seconds)
			r.To = rate(was.Traffic.ToGuest, n.Traffic.ToGuest, seconds)
			r.Dropped, r.Reason = drops(was, n, seconds)
		}
		spent, ok := now.Vhost[n.PID]
		if former, had := old.Vhost[n.PID]; ok && had && seconds > 0 && spent >= former {
			r.VhostCPU = (spent - former).Seconds() / seconds
		}
		rows = append(rows, r)
	}
	return rows
}

// restarted reports whether counters have begun again.
func restarted(old, now *nic.Traffic) bool {
	less := func(a, b nic.Direction) bool {
		return b.Bytes < a.Bytes || b.Packets < a.Packets || b.Errors < a.Errors || b.Dropped < a.Dropped
	}
	return less(old.FromGuest, now.FromGuest) || less(old.ToGuest, now.ToGuest)
}

func rate(old, now nic.Direction, seconds float64) Rate {
	return Rate{
		Bits: 8 * float64(now.Bytes-old.Bytes) / seconds, Packets: float64(now.Packets-old.Packets) / seconds,
	}
}

// drops returns the rate of all drops, and why most of them happened.
func drops(old, now *tapmgr.Sighting, seconds float64) (perSecond float64, reason string) {
	by := map[string]uint64{
		notRead:                                 now.Traffic.ToGuest.Dropped - old.Traffic.ToGuest.Dropped,
		"from the guest, by the host interface": now.Traffic.FromGuest.Dropped - old.Traffic.FromGuest.Dropped,
	}
	for why, n := range now.Drops {
		if former := old.Drops[why]; n > former {
			by[why] = n - former
		}
	}
	most := uint64(0)
	for _, why := range slices.Sorted(maps.Keys(by)) {
		perSecond += float64(by[why]) / seconds
		if by[why] > most {
			most, reason = by[why], why
		}
	}
	return perSecond, reason
}

// Keys by which rows can be sorted, in the order in which the screen changes them.
var Keys = []string{"rate", "packets", "drops", "cpu", "name"}

// Sort sorts rows by a key, the largest first, and names alphabetically.
func Sort(rows []Row, by string) {
	value := func(r Row) float64 {
		switch by {
		case "rate":
			return r.From.Bits + r.To.Bits
		case "packets":
			return r.From.Packets + r.To.Packets
		case "drops":
			return r.Dropped
		case "cpu":
			return r.VhostCPU
		}
		return 0
	}
	slices.SortStableFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(value(b), value(a)), strings.Compare(a.title(), b.title()),
			strings.Compare(a.Interface, b.Interface))
	})
}

// Filter returns the rows that have all words of a text in their names, state or reason.
func Filter(rows []Row, text string) []Row {
	words := strings.Fields(strings.ToLower(text))
	return slices.DeleteFunc(slices.Clone(rows), func(r Row) bool {
		all := strings.ToLower(r.title() + " " + r.Interface + " " + r.State + " " + r.Reason)
		return slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(all, w) })
	})
}

func (r Row) title() string {
	if r.Guest == "" {
		return r.Interface
	}
	return r.Guest + "/" + r.NIC
}

// Header returns the names of the columns, for lines of a width.
func Header(width int) string {
	return line(width, "NIC", "INTERFACE", "FROM", "TO", "PPS", "DROP/S", "VHOST", "STATE")
}

// Line returns a row as a line of a width.
func (r Row) Line(width int) string {
	state := r.State
	if r.Reason != "" {
		state = r.Reason
	}
	vhost := "-"
	if r.VhostCPU > 0 {
		vhost = fmt.Sprintf("%.0f%%", 100*r.VhostCPU)
	}
	return line(width, r.title(), r.Interface, number(r.From.Bits), number(r.To.Bits),
		number(r.From.Packets+r.To.Packets), number(r.Dropped), vhost, state)
}

// line cuts the names, and the last column to what remains of the width.
func line(width int, name, link, from, to, pps, drop, vhost, last string) string {
	text := fmt.Sprintf("%s %s %7s %7s %6s %6s %5s ", fixed(name, 15), fixed(link, 15), from, to, pps, drop, vhost)
	return strings.TrimRight(text+fixed(last, max(0, width-utf8.RuneCountInString(text))), " ")
}

// fixed cuts or fills a text to a width.
func fixed(s string, width int) string {
	r := []rune(console.Clean(s))
	if len(r) > width {
		return string(r[:max(0, width-1)]) + "…"[:len("…")*min(1, width)]
	}
	return string(r) + strings.Repeat(" ", width-len(r))
}

// number returns a rate in at most five characters, in units of 1000.
func number(n float64) string {
	if n == 0 {
		return "0"
	}
	for _, unit := range []string{"", "k", "M", "G", "T"} {
		switch {
		case n < 9.95 && unit != "":
			return fmt.Sprintf("%.1f%s", n, unit)
		case n < 999.5:
			return fmt.Sprintf("%.0f%s", max(n, 1), unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.0fP", n)
}
