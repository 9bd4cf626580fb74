package doctor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// watch checks whether a vmnet watch runs, which resets the addresses of taps: the holder of a tap
// may give it another guest's address (SIOCSIFHWADDR), and its bridge then keeps that guest's
// frames.
func (m Machine) watch() []Check {
	const name = "watch"
	files, _ := filepath.Glob(m.at("/proc/[0-9]*/cmdline"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		argv := strings.Split(string(text), "\x00")
		if err == nil && filepath.Base(argv[0]) == "vmnet" && slices.Contains(argv[1:], "watch") {
			return ok(name,
				"vmnet watch runs: it puts ports back on their bridges, and resets the addresses of taps that their holders change")
		}
	}
	return warn(name, "systemctl enable --now vmnet-watch, or vmnet watch",
		"no vmnet watch runs: a hostile QEMU can give its tap another guest's address and take that guest's frames, until vmnet reconcile")
}
