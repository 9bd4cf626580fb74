// Package qemu finds running QEMU processes, and reads guest names and monitor sockets from their
// command lines.
package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// CmdLine holds the relevant parts of a QEMU command line. Its author is the user who started that
// QEMU: trust nothing in it further than that user, and take it as a hint where the kernel knows
// better.
type CmdLine struct {
	Name     string    // -name guest=; empty if absent
	Monitors []Monitor // control (QMP) monitors on a unix socket that listens, in order
	Others   []string  // monitors that cannot be used, and why
	UUID     string    // -uuid, as written; empty if absent
	Libvirt  bool      // libvirt started it, and holds its monitor
	Dir      string    // where libvirt keeps the running domain's files; empty if unknown
	Incoming bool      // -incoming: its guest comes from another QEMU, and may have arrived
	Agent    string    // of the guest agent: path of the socket on which QEMU listens; empty for none
}

// Monitor is a QMP monitor that listens on a unix socket, which QEMU binds or has inherited.
type Monitor struct {
	Path string // as written, and relative to QEMU's working directory; "@name" for an abstract one
	FD   int    // of the inherited socket; 0: none (fd 0 is QEMU's stdin)
}

// Parse parses a command line. It knows the forms of QEMU's manual page: -qmp unix:PATH,server=on;
// -qmp chardev:ID; -mon chardev=ID,mode=control with -chardev socket,id=ID,path=PATH,server=on; the
// deprecated ",server,nowait"; a JSON object instead of key=value pairs; and the double dash. It
// skips unknown options.
func Parse(argv []string) CmdLine {
	var c CmdLine
	chardevs := map[string]options{}
	var mons []options // the backends of the monitors; QEMU takes the options in any order
	agent := ""        // the chardev of the guest agent's port
	for opt, value := range valued(argv) {
		switch opt {
		case "name":
			if o := parseOptions(value, "guest"); o["guest"] != "" {
				c.Name = o["guest"]
			}
		case "qmp", "qmp-pretty":
			mons = append(mons, parseDevice(value))
		case "chardev":
			o := parseChardev(value)
			chardevs[o["id"]] = o
		case "mon":
			if o := parseObject(value, "chardev"); o["mode"] == "control" {
				mons = append(mons, options{"backend": "chardev", "id": o["chardev"]})
			}
		case "device":
			o := parseObject(value, "driver")
			if o["name"] == agentPort && strings.HasPrefix(o["driver"], "virtserial") {
				agent = o["chardev"]
			}
		case "uuid":
			c.UUID = value
		case "incoming":
			c.Incoming = true
		case "object":
			if file := masterKey(value); file != "" {
				c.Dir = filepath.Dir(file)
			}
		}
	}
	for _, o := range mons {
		if o["backend"] == "chardev" {
			var ok bool
			if o, ok = chardevs[o["id"]]; !ok {
				continue // QEMU does not start
			}
		}
		// Libvirt passes QEMU a socket on which it already listens, under this name
		// (qemuBuildMonitorCommandLine in src/qemu/qemu_command.c). The output of virsh
		// domxml-to-native has a path instead: QEMU binds that itself, and libvirt has not started
		// it.
		if o["id"] == "charmonitor" && o["fd"] != "" {
			c.Libvirt = true
			continue
		}
		c.add(monitorOf(o))
	}
	if o := chardevs[agent]; agent != "" && o["backend"] == "socket" && o["server"] == "on" {
		c.Agent = o["path"]
		if o["abstract"] == "on" && c.Agent != "" {
			c.Agent = "@" + c.Agent
		}
	}
	return c
}

// agentPort is the name of the virtio port of QEMU's guest agent (qemu-ga(8)).
const agentPort = "org.qemu.guest_agent.0"

// masterKey returns the file of the secret by which libvirt encrypts data for a domain's QEMU
// (qemuBuildMasterKeyCommandLine in src/qemu/qemu_command.c). Its directory belongs to that domain
// alone while it runs. For another -object it returns "".
func masterKey(object string) string {
	o := parseObject(object, "qom-type")
	if o["qom-type"] != "secret" || o["id"] != "masterKey0" || !filepath.IsAbs(o["file"]) {
		return ""
	}
	return filepath.Clean(o["file"])
}

// valued yields the options that this package reads, without their dashes and with their values. A
// value is never taken for an option.
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
	return slices.Contains([]string{
		"name", "qmp", "qmp-pretty", "chardev", "mon", "machine", "M", "smp",
		"uuid", "object", "incoming", "device", "numa", "mem-path", "m", "accel",
	}, opt)
}

func (c *CmdLine) add(m Monitor, err error) {
	if err != nil {
		c.Others = append(c.Others, err.Error())
		return
	}
	c.Monitors = append(c.Monitors, m)
}

// monitorOf returns the monitor on a chardev, or an error if vmnet cannot connect to it or if it
// takes no file descriptors.
func monitorOf(o options) (Monitor, error) {
	fd, err := strconv.Atoi(o["fd"])
	switch {
	case o["backend"] != "socket":
		return Monitor{}, fmt.Errorf("a monitor on %q, which takes no file descriptors", o["backend"])
	case o["path"] == "" && o["fd"] == "":
		return Monitor{}, errors.New("a monitor on TCP, which carries no file descriptors")
	case o["server"] != "on" && o["path"] == "":
		return Monitor{}, errors.New("a monitor on a connection that it has inherited")
	case o["server"] != "on":
		return Monitor{}, fmt.Errorf("a monitor that connects to %s instead of listening", o["path"])
	case o["path"] == "" && (err != nil || fd <= 0):
		return Monitor{}, fmt.Errorf("a monitor on the file descriptor %q", o["fd"])
	case o["path"] == "":
		return Monitor{FD: fd}, nil
	case o["abstract"] == "on":
		return Monitor{Path: "@" + o["path"]}, nil
	}
	return Monitor{Path: o["path"]}, nil
}

// options are the key=value pairs of one option's argument.
type options map[string]string

// parseOptions splits "a=1,b=2" by QEMU's rules: ",," is a comma in a value, the first element may
// be the value of the implied key, and a later element without "=" is a switch ("server",
// "nowait").
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

// parseDevice parses the short form "unix:PATH,server=on" of -qmp (qemu_chr_parse_compat), where
// another key may replace the path ("unix:fd=3").
func parseDevice(s string) options {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "unix":
		o := parseOptions(rest, "path")
		o["backend"] = "socket"
		return o
	case "tcp", "telnet":
		return options{"backend": "socket"}
	case "chardev":
		id, _, _ := strings.Cut(rest, ",")
		return options{"backend": "chardev", "id": id}
	}
	return options{"backend": kind}
}

// parseObject parses key=value pairs, or a JSON object in their place.
func parseObject(s, implied string) options {
	if strings.HasPrefix(s, "{") {
		return parseJSON(s)
	}
	return parseOptions(s, implied)
}

// parseChardev parses -chardev's value. Its JSON form is nested as in chardev-add (qapi/char.json):
// backend and address each have a type and data.
func parseChardev(s string) options {
	if !strings.HasPrefix(s, "{") {
		return parseOptions(s, "backend")
	}
	var object map[string]any
	_ = json.Unmarshal([]byte(s), &object) // QEMU reports the error
	o := options{}
	var types []string
	flatten(object, o, &types)
	if slices.Contains(types, "socket") {
		o["backend"] = "socket"
	}
	if slices.Contains(types, "fd") {
		o["fd"] = o["str"]
	}
	return o
}

// flatten copies the members of an object, and of the objects in it.
func flatten(object map[string]any, o options, types *[]string) {
	for key, value := range object {
		switch v := value.(type) {
		case map[string]any:
			flatten(v, o, types)
		case bool:
			o[key] = map[bool]string{true: "on", false: "off"}[v]
		case string:
			if o[key] = v; key == "type" {
				*types = append(*types, v)
			}
		}
	}
}

// splitCommas splits at single commas and replaces double ones by one.
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

// Escape doubles commas, as QEMU's option values require.
func Escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }
