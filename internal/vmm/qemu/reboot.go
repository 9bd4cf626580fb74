package qemu

import "strings"

// EndsOnReset reports whether QEMU ends when its machine is reset, as its command line says:
// -no-reboot, or -action reboot=shutdown. The last one counts.
func (p Process) EndsOnReset() bool { return endsOnReset(p.args) }

func endsOnReset(argv []string) (ends bool) {
	for i, arg := range argv {
		opt, ok := strings.CutPrefix(arg, "-")
		switch opt = strings.TrimPrefix(opt, "-"); {
		case ok && opt == "no-reboot":
			ends = true
		case ok && opt == "action" && i+1 < len(argv):
			if reboot := parseOptions(argv[i+1], "")["reboot"]; reboot != "" {
				ends = reboot == "shutdown"
			}
		}
	}
	return ends
}
