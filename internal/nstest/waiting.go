package nstest

import (
	"runtime"
	"strings"
)

// module begins the name of each of vmnet's functions in a stack trace.
const module = "vmnet/"

// Waiting counts the goroutines of this process that wait in fn, such as "qmp.(*Conn).await": for a
// channel or for a file, with no other vmnet function called from there. It shows a test that a
// goroutine which it started has reached that point.
func Waiting(fn string) int {
	n := 0
	for stack := range strings.SplitSeq(stacks(), "\n\n") {
		if waitsIn(stack, fn) {
			n++
		}
	}
	return n
}

// waitsIn reports whether the trace of one goroutine, which begins like
// "goroutine 7 [select, 2 minutes]:", says that it waits in fn.
func waitsIn(stack, fn string) bool {
	head, calls, _ := strings.Cut(stack, "\n")
	_, state, _ := strings.Cut(head, "[")
	state, _, _ = strings.Cut(strings.TrimRight(state, "]:"), ",")
	switch state {
	case "select", "chan receive", "IO wait":
	default:
		return false
	}
	for call := range strings.Lines(calls) {
		if strings.HasPrefix(call, module) {
			return strings.HasPrefix(call, module+fn+"(")
		}
	}
	return false
}

// stacks returns the traces of all goroutines.
func stacks() string {
	for b := make([]byte, 1<<16); ; b = make([]byte, 2*len(b)) {
		if n := runtime.Stack(b, true); n < len(b) {
			return string(b[:n])
		}
	}
}
