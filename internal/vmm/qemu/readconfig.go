package qemu

import (
	"slices"
	"strings"
)

// Bounds for files given by -readconfig.
const (
	maxConfigs = 16
	// MaxConfig is the most that is read of one file, in bytes.
	MaxConfig = 1 << 20
)

// configOptions maps a file's groups to options with other names (qemu_config_foreach in QEMU's
// util/qemu-config.c).
var configOptions = map[string]string{"smp-opts": "smp"}

// Expand returns a command line in which options replace the files given by -readconfig. unread are
// the files that read refuses; they stay in the command line. read gets the path as written,
// relative to QEMU's working directory.
func Expand(argv []string, read func(path string) (string, error)) (expanded, unread []string) {
	left := maxConfigs
	for i := 0; i < len(argv); i++ {
		opt, dashed := strings.CutPrefix(argv[i], "-")
		opt = strings.TrimPrefix(opt, "-")
		switch {
		case dashed && isRead(opt) && i+1 < len(argv): // its value is not an option
			expanded = append(expanded, argv[i], argv[i+1])
			i++
			continue
		case !dashed || opt != "readconfig" || i+1 == len(argv) || i == 0:
			expanded = append(expanded, argv[i])
			continue
		}
		i++
		text, err := "", error(nil)
		if left--; left >= 0 {
			text, err = read(argv[i])
		}
		if left < 0 || err != nil {
			expanded, unread = append(expanded, argv[i-1], argv[i]), append(unread, argv[i])
			continue
		}
		expanded = append(expanded, configArgs(text)...)
	}
	return expanded, unread
}

// configArgs parses [GROUP "ID"] or [GROUP], and lines NAME = "VALUE" below. It skips what QEMU
// refuses.
func configArgs(text string) (args []string) {
	var group string
	var values []string
	flush := func() {
		if group != "" && len(values) > 0 {
			args = append(args, "-"+group, strings.Join(values, ","))
		}
		group, values = "", nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if head, ok := strings.CutPrefix(line, "["); ok {
			flush()
			head, _, _ = strings.Cut(head, "]")
			name, id, _ := strings.Cut(head, " ")
			if group = name; configOptions[name] != "" {
				group = configOptions[name]
			}
			if id = strings.Trim(strings.TrimSpace(id), `"`); id != "" {
				values = append(values, "id="+Escape(id))
			}
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); !ok || group == "" || strings.HasPrefix(line, "#") ||
			strings.ContainsAny(name, " ,") {
			continue
		}
		value = strings.TrimSpace(value)
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			values = append(values, name+"="+Escape(value[1:len(value)-1]))
		}
	}
	flush()
	return slices.Clip(args)
}
