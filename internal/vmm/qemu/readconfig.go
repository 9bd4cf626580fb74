package qemu

import (
	"slices"
	"strings"
)

// Bounds of what is read of files given by -readconfig.
const (
	maxConfigs = 16
	// MaxConfig is the most bytes of one file.
	MaxConfig = 1 << 20
)

// configOptions are the options for which a file's groups stand (qemu_config_foreach in QEMU's
// util/qemu-config.c), where they have other names.
var configOptions = map[string]string{"smp-opts": "smp"}

// Expand is a command line with the files that it has by -readconfig in their places, as options.
// unread are those that read refuses, which stay. read is given the path as it is written, relative
// to QEMU's working directory.
func Expand(argv []string, read func(path string) (string, error)) (expanded, unread []string) {
	left := maxConfigs
	for i := 0; i < len(argv); i++ {
		opt, dashed := strings.CutPrefix(argv[i], "-")
		opt = strings.TrimPrefix(opt, "-")
		switch {
		case dashed && isRead(opt) && i+1 < len(argv): // its value is no option
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

// configArgs reads [GROUP "ID"] or [GROUP], and lines NAME = "VALUE" below. What QEMU would refuse
// is passed over.
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
		if name = strings.TrimSpace(name); !ok || group == "" || strings.HasPrefix(line, "#") || strings.ContainsAny(name, " ,") {
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
