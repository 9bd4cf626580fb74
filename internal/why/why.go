// Package why follows one frame of a guest, device by device, until something stops it. The walk is
// a function of [Facts], which are plain data that [Read] gathers from the kernel, QEMU, nftables
// and the databases of switches. Nothing is changed.
package why

import (
	"fmt"
	"slices"
	"strings"
)

// A Verdict is what a device does with the frame. Its words are stable.
type Verdict string

// Verdicts.
const (
	Passes  Verdict = "passes"
	Stops   Verdict = "stops"
	Unknown Verdict = "unknown" // it cannot be seen from here, or depends on what is not known
)

// A Step is what one device, or one part of it, does with the frame.
type Step struct {
	Where   string  `json:"where"` // "bridge br0"
	What    string  `json:"what,omitempty"`
	Verdict Verdict `json:"verdict"`
	Why     string  `json:"why,omitempty"`  // what stops the frame, or is not known
	Cure    string  `json:"cure,omitempty"` // the command that cures it, or how to see what is not known
}

// A Walk is the way of a frame. It ends with the first Step that stops the frame.
type Walk struct {
	From  string `json:"from"` // VM/NIC
	To    string `json:"to"`
	Frame string `json:"frame"`
	Steps []Step `json:"steps"`
	Live  []Step `json:"live,omitempty"` // what probes have found, and what was counted meanwhile
}

// Stopped returns the Step that stops the frame, or else a probe; nil if none is known.
func (w *Walk) Stopped() *Step {
	for _, steps := range [][]Step{w.Steps, w.Live} {
		if i := slices.IndexFunc(steps, func(s Step) bool { return s.Verdict == Stops }); i >= 0 {
			return &steps[i]
		}
	}
	return nil
}

// walker makes a Walk. Once something has stopped the frame, it adds no more steps.
type walker struct {
	*Facts
	steps   []Step
	stopped bool
	ended   bool // the frame is where it should be, or out of sight
}

// done reports whether there is nothing left to follow.
func (w *walker) done() bool { return w.stopped || w.ended }

func (w *walker) add(s Step) {
	if w.stopped {
		return
	}
	w.steps = append(w.steps, s)
	w.stopped = s.Verdict == Stops
}

// said reports whether there is a Step of a place already.
func (w *walker) said(where string) bool {
	return slices.ContainsFunc(w.steps, func(s Step) bool { return s.Where == where })
}

func (w *walker) pass(where, format string, args ...any) {
	w.add(Step{Where: where, What: fmt.Sprintf(format, args...), Verdict: Passes})
}

func (w *walker) stop(where, cure, format string, args ...any) {
	w.add(Step{Where: where, Verdict: Stops, Why: fmt.Sprintf(format, args...), Cure: cure})
}

func (w *walker) unknown(where, how, format string, args ...any) {
	w.add(Step{Where: where, Verdict: Unknown, Why: fmt.Sprintf(format, args...), Cure: how})
}

// unseen reports whether a part of the facts is missing, and adds that once, with how to see it.
func (w *walker) unseen(p Part, how string) bool {
	reason, missing := w.Missing[p]
	if where := string(p); missing && !w.said(where) {
		w.unknown(where, how, "not seen from here: %s", reason)
	}
	return missing
}

// a check reports one thing of a device that would stop the frame.
type check struct {
	fault     bool
	why, cure string
}

// checks adds the first fault of a device, or that the frame passes.
func (w *walker) checks(where, what string, all ...check) {
	for _, c := range all {
		if c.fault {
			w.stop(where, c.cure, "%s", c.why)
			return
		}
	}
	w.pass(where, "%s", what)
}

// Follow follows the frame as far as the facts go.
func Follow(f *Facts) *Walk {
	w := &walker{Facts: f}
	for _, part := range []func(){w.leaveGuest, w.leaveInterface, w.leavePort, w.travel, w.arrive, w.comeBack} {
		if part(); w.done() {
			break
		}
	}
	return &Walk{From: f.NIC.Title(), To: f.To.String(), Frame: f.Frame.String(), Steps: w.steps}
}

// travel takes the frame from the guest's interface to where it leaves the host, or to the
// interface of another guest.
func (w *walker) travel() {
	switch n := w.NIC; {
	case n.Switch:
		w.userspaceSwitch()
	case n.IsOVS():
		w.openVSwitch()
	case n.IsRouted():
		w.routedGuest()
	case n.IsTap():
		w.bridge()
	default:
		w.parentDevice()
	}
}

// summary returns the last line of the text.
func (w *Walk) summary() string {
	if s := w.Stopped(); s != nil {
		return strings.TrimSpace(fmt.Sprintf("stopped at %s: %s%s", s.Where, s.Why, inBrackets(s.Cure)))
	}
	unseen := 0
	for _, s := range w.Steps {
		if s.Verdict == Unknown {
			unseen++
		}
	}
	switch unseen {
	case 0:
		return "nothing stops it"
	case 1:
		return "nothing is seen that stops it; one thing cannot be seen from here"
	}
	return fmt.Sprintf("nothing is seen that stops it; %d things cannot be seen from here", unseen)
}

func inBrackets(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}
