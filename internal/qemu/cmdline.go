// Package qemu finds running QEMU processes and reads from their command
// lines what they are called and where their monitor listens.
package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
)

// CmdLine is what a QEMU command line says that matters here. Everything in it
// was written by whoever started that QEMU: trust none of it further than that
// user.
type CmdLine struct {
	Name     string    // -name guest=; empty where it has none
	Monitors []Monitor // control (QMP) monitors on a unix socket, in order
	Others   []string  // monitors that cannot be used, and why
	UUID     string    // -uuid, as written; empty where it has none
	Libvirt  bool      // libvirt started it, and holds its monitor
	Dir      string    // where libvirt keeps the running domain's files; empty where that is not told
}

// Monitor is a QMP monitor that listens on a unix socket.
type Monitor struct {
	Path string // as written; relative to QEMU's working directory
}

// Parse reads a command line. It knows the forms of QEMU's manual page:
// -qmp unix:PATH,server=on; -mon chardev=ID,mode=control with -chardev
// socket,id=ID,path=PATH,server=on; the deprecated ",server,nowait"; and the
// double dash. Unknown options are passed over.
func Parse(argv []string) CmdLine {
	var c CmdLine
	chardevs := map[string]options{}
	var mons []string // the chardevs of control monitors; QEMU takes the options in any order
	for opt, value := range valued(argv) {
		switch opt {
		case "name":
			if o := parseOptions(value, "guest"); o["guest"] != "" {
				c.Name = o["guest"]
			}
		case "qmp", "qmp-pretty":
			c.add(monitorOf(parseDevice(value)))
		case "chardev":
			o := parseOptions(value, "backend")
			chardevs[o["id"]] = o
		case "mon":
			if o := parseOptions(value, "chardev"); o["mode"] == "control" {
				mons = append(mons, o["chardev"])
			}
		case "uuid":
			c.UUID = value
		case "object":
			if file := masterKey(value); file != "" {
				c.Dir = filepath.Dir(file)
			}
		}
	}
	for _, id := range mons {
		o, ok := chardevs[id]
		if !ok {
			continue
		}
		// libvirt hands QEMU a socket that it listens on itself and calls it so.
		if id == "charmonitor" && (o["fd"] != "" || strings.Contains(o["path"], "/libvirt/")) {
			c.Libvirt = true
			continue
		}
		c.add(monitorOf(o))
	}
	return c
}

// masterKey is the file of the secret by which libvirt encrypts what it tells a domain's QEMU
// (qemuBuildMasterKeyCommandLine in src/qemu/qemu_command.c): its folder is that domain's alone while it runs.
// It is empty for another -object.
func masterKey(object string) string {
	o := options{}
	if strings.HasPrefix(object, "{") {
		var fields map[string]any
		if json.Unmarshal([]byte(object), &fields) != nil {
			return ""
		}
		for key, v := range fields {
			o[key], _ = v.(string)
		}
	} else {
		o = parseOptions(object, "qom-type")
	}
	if o["qom-type"] != "secret" || o["id"] != "masterKey0" || !filepath.IsAbs(o["file"]) {
		return ""
	}
	return filepath.Clean(o["file"])
}

// valued yields the options that this package reads, without their dashes and with their
// values; a value is no option, whatever it looks like.
func valued(argv []string) iter.Seq2[string, string] {
	return func(yield func(opt, value string) bool) {
		for i := 1; i+1 < len(argv); i++ {
			opt, ok := strings.CutPrefix(argv[i], "-")
			if opt = strings.TrimPrefix(opt, "-"); !ok || !isRead(opt) {
				continue
			}
			i++
			if !yield(opt, argv[i]) {
				return
			}
		}
	}
}

func isRead(opt string) bool {
	return slices.Contains([]string{"name", "qmp", "qmp-pretty", "chardev", "mon", "machine", "M", "smp", "uuid", "object"}, opt)
}

func (c *CmdLine) add(m Monitor, err error) {
	if err != nil {
		c.Others = append(c.Others, err.Error())
		return
	}
	c.Monitors = append(c.Monitors, m)
}

// monitorOf tells whether a chardev can be connected to as a QMP monitor that
// takes file descriptors.
func monitorOf(o options) (Monitor, error) {
	switch {
	case o["backend"] != "socket":
		return Monitor{}, fmt.Errorf("a monitor on %q, which takes no file descriptors", o["backend"])
	case o["path"] == "" && o["fd"] != "":
		return Monitor{}, errors.New("a monitor on an inherited socket, whose path only its manager knows")
	case o["path"] == "":
		return Monitor{}, errors.New("a monitor on TCP, which carries no file descriptors")
	case o["abstract"] == "on":
		return Monitor{}, errors.New("a monitor on an abstract socket")
	case o["server"] != "on":
		return Monitor{}, fmt.Errorf("a monitor that connects to %s instead of listening", o["path"])
	}
	return Monitor{o["path"]}, nil
}

// options are the key=value pairs of one option argument.
type options map[string]string

// parseOptions splits "a=1,b=2" with QEMU's rules: ",," is a comma in a value,
// the first element may be the value of the implied key, a later one without
// "=" is a switch ("server", "nowait").
func parseOptions(s, implied string) options {
	o := options{}
	for i, part := range splitCommas(s) {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case ok:
			o[key] = value
		case i == 0:
			o[implied] = part
		case strings.HasPrefix(part, "no"):
			o[strings.TrimPrefix(part, "no")] = "off"
		default:
			o[part] = "on"
		}
	}
	return o
}

// parseDevice reads the short form "unix:PATH,server=on" that -qmp takes
// (qemu_chr_parse_compat).
func parseDevice(s string) options {
	parts := splitCommas(s)
	kind, rest, _ := strings.Cut(parts[0], ":")
	o := parseOptions(s, "")
	delete(o, "")
	o["backend"] = kind
	switch kind {
	case "unix":
		o["backend"], o["path"] = "socket", rest
	case "tcp", "telnet":
		o["backend"] = "socket"
	case "chardev":
		o["backend"] = "chardev " + rest
	}
	return o
}

// splitCommas splits at single commas and makes one of two.
func splitCommas(s string) []string {
	var parts []string
	var part strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != ',' {
			part.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == ',' {
			part.WriteByte(',')
			i++
			continue
		}
		parts = append(parts, part.String())
		part.Reset()
	}
	return append(parts, part.String())
}

// Escape doubles commas, as QEMU's option values want it.
func Escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }
