package doctor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// netfilter checks whether bridged frames go through iptables
// (Documentation/networking/ip-sysctl.rst of the kernel, bridge-nf-call-*).
func (m Machine) netfilter() []Check {
	const name = "br_netfilter"
	var on []string
	look := func() error {
		for _, tables := range []string{"iptables", "ip6tables", "arptables"} {
			if v, err := m.read("/proc/sys/net/bridge/bridge-nf-call-" + tables); err == nil &&
				strings.TrimSpace(v) == "1" {
				on = append(on, tables)
			}
		}
		return nil
	}
	if err := m.in(look); err != nil {
		return warn(name, "", "%v", err)
	}
	if len(on) == 0 {
		return ok(name, "bridged frames do not go through iptables")
	}
	return warn(name,
		"sysctl -w net.bridge.bridge-nf-call-iptables=0 (and ip6tables, arptables), or iptables -I FORWARD -m physdev --physdev-is-bridged -j ACCEPT",
		"bridged frames go through %s, whose FORWARD chain Docker sets to DROP: guests may not reach each other",
		strings.Join(on, ", "))
}

// in runs f with its thread in the netns.
func (m Machine) in(f func() error) error {
	if m.NS == nil {
		return f()
	}
	return m.NS.Do(f)
}

// commLen is how much of a process's name the kernel keeps, in bytes (TASK_COMM_LEN less its NUL).
const commLen = 15

// runs reports whether a process of that name exists.
func (m Machine) runs(name string) bool {
	files, err := filepath.Glob(m.at("/proc/[0-9]*/comm"))
	return err == nil && slices.ContainsFunc(files, func(f string) bool {
		comm, err := os.ReadFile(f)
		return err == nil && strings.TrimSpace(string(comm)) == name[:min(len(name), commLen)]
	})
}

// networkManager checks that it leaves taps alone (NetworkManager.conf(5), unmanaged-devices).
func (m Machine) networkManager() []Check {
	const name = "NetworkManager"
	if !m.runs(name) {
		return ok(name, "it does not run")
	}
	files := append([]string{"/etc/NetworkManager/NetworkManager.conf"},
		m.files("conf", "/usr/lib/NetworkManager/conf.d", "/run/NetworkManager/conf.d",
			"/etc/NetworkManager/conf.d")...)
	for _, file := range files {
		text, err := m.read(file)
		if err != nil {
			continue
		}
		for _, v := range settings(text)["keyfile"] {
			if strings.TrimSuffix(v.key, "+") == "unmanaged-devices" && coversTaps(v.value) {
				return ok(name, "it leaves taps alone (%s)", file)
			}
		}
	}
	return warn(name,
		"write [keyfile] and below it unmanaged-devices+=type:tun into /etc/NetworkManager/conf.d/vmnet.conf, and reload it",
		"it runs, and is not configured to leave taps alone: it may give them addresses or take them down")
}

func coversTaps(devices string) bool {
	return slices.ContainsFunc(strings.FieldsFunc(devices, func(r rune) bool {
		return strings.ContainsRune(";, ", r)
	}), func(d string) bool {
		return slices.Contains([]string{"type:tun", "driver:tun", "*", "interface-name:*"}, d)
	})
}

// setting is a line KEY=VALUE of a section of a configuration file.
type setting struct{ key, value string }

// settings parses a file of [sections], in the format of NetworkManager and systemd.
func settings(text string) map[string][]setting {
	found, section := map[string][]setting{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section = line[1 : len(line)-1]
		} else if k, v, ok := strings.Cut(line, "="); ok && line[0] != '#' && line[0] != ';' {
			found[section] = append(found[section], setting{strings.TrimSpace(k), strings.TrimSpace(v)})
		}
	}
	return found
}

// files lists the files with that ending, by their names. A file in a later directory replaces a
// file of the same name in an earlier one.
func (m Machine) files(ending string, dirs ...string) []string {
	at := map[string]string{}
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(m.at(dir), "*."+ending))
		if err != nil {
			continue
		}
		for _, f := range found {
			at[filepath.Base(f)] = filepath.Join(dir, filepath.Base(f))
		}
	}
	var paths []string
	for _, p := range at {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	return paths
}

// systemdDirs hold the configuration of systemd-networkd and udev, the strongest last
// (systemd.network(5)).
var systemdDirs = []string{"/usr/lib/systemd/network", "/run/systemd/network", "/etc/systemd/network"}

// networkd looks for the first of its files that matches a tap, which is the one that counts.
func (m Machine) networkd() []Check {
	const name = "systemd-networkd"
	if !m.runs(name) {
		return ok(name, "it does not run")
	}
	for _, file := range m.files("network", systemdDirs...) {
		text, err := m.read(file)
		if err != nil {
			continue
		}
		s := settings(text)
		if !matchesTap(s["Match"]) {
			continue
		}
		if slices.Contains(s["Link"], setting{"Unmanaged", "yes"}) ||
			slices.Contains(s["Link"], setting{"Unmanaged", "true"}) {
			return ok(name, "it leaves taps alone (%s)", file)
		}
		return warn(name,
			"write [Match] Driver=tun and [Link] Unmanaged=yes, each key on its own line, into /etc/systemd/network/05-vmnet.network, and networkctl reload",
			"%s matches taps as well: it may give them addresses or take them from their bridge", file)
	}
	return ok(name, "none of its files matches taps")
}

// matchesTap reports whether a [Match] section matches a tap, as vmnet names them. Conditions on
// the machine are assumed to hold.
func matchesTap(match []setting) bool {
	tap := map[string]string{"Name": "vm1-net0", "Type": "ether", "Kind": "tun", "Driver": "tun"}
	ofTheMachine := []string{
		"Host", "Virtualization", "KernelCommandLine", "KernelVersion", "Version", "Credential",
		"Architecture", "Firmware",
	}
	for _, s := range match {
		is, known := tap[s.key]
		switch {
		case known && !matchesAny(s.value, is), !known && !slices.Contains(ofTheMachine, s.key):
			return false
		}
	}
	return len(match) > 0
}

// matchesAny reports whether text matches a list of globs; a leading ! inverts the list.
func matchesAny(globs, text string) bool {
	globs, inverted := strings.CutPrefix(globs, "!")
	found := slices.ContainsFunc(strings.Fields(globs), func(g string) bool {
		ok, err := filepath.Match(g, text)
		return ok && err == nil
	})
	return found != inverted
}

// udev checks its default for new links' addresses (systemd.link(5), MACAddressPolicy).
func (m Machine) udev() []Check {
	const name = "udev"
	for _, file := range m.files("link", append([]string{"/lib/systemd/network"}, systemdDirs...)...) {
		if filepath.Base(file) != "99-default.link" {
			continue
		}
		text, err := m.read(file)
		if err == nil && slices.Contains(settings(text)["Link"], setting{"MACAddressPolicy", "persistent"}) {
			return ok(name,
				"%s gives new links an address of their own where nobody has set one: vmnet's taps and bridges are set, bridges of others may change",
				file)
		}
	}
	return ok(name, "it leaves the addresses of new links as they are")
}
