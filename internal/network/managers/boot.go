package managers

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Boot is what the manager of an interface needs so that, after the next boot, the host has its
// addresses on a network's bridge instead.
type Boot struct {
	Manager string   `json:"manager"` // "" if nothing is known to configure the interface
	Files   []File   `json:"-"`       // to be written, if that is safe
	Text    []string `json:"text"`    // what is to be done by hand otherwise, and what else there is to know
}

// Interface is one whose addresses have moved.
type Interface struct {
	Name  string
	Index int
	MAC   string
}

// NextBoot returns what the manager of an interface needs.
func (h Host) NextBoot(network string, nic Interface) Boot {
	if !plain.MatchString(nic.Name) {
		return Boot{Text: []string{fmt.Sprintf("%s has a name that managers take for a pattern: have what configures "+
			"it at boot configure %s instead", nic.Name, network)}}
	}
	for _, ask := range []func(string, Interface) (Boot, bool){h.byNetworkd, h.byNM, h.byIfupdown} {
		if b, ok := ask(network, nic); ok {
			return b
		}
	}
	return Boot{Text: []string{fmt.Sprintf("nothing is known to configure %s at boot: what does so should configure %s",
		nic.Name, network)}}
}

// fields reads a file of lines KEY=VALUE.
func (h Host) fields(path string) map[string]string {
	text, err := os.ReadFile(h.path(path))
	if err != nil {
		return nil
	}
	found := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			found[key] = value
		}
	}
	return found
}

// byNetworkd is for an interface of systemd-networkd, also where netplan has written its file. The
// bridge gets a copy of what the interface has.
func (h Host) byNetworkd(network string, nic Interface) (Boot, bool) {
	state := h.fields(fmt.Sprintf("%s/links/%d", netif, nic.Index))
	file := state["NETWORK_FILE"]
	if file == "" {
		return Boot{}, false
	}
	b := Boot{Manager: "systemd-networkd"}
	netplan := strings.Contains(filepath.Base(file), "-netplan-")
	if netplan {
		b.Manager = "netplan with systemd-networkd"
	}
	text, err := os.ReadFile(h.path(file))
	drop, _ := filepath.Glob(h.path(file) + ".d/*.conf")
	copied, odd := networkSections(string(text))
	if err != nil || len(drop) > 0 || odd != "" {
		why := "it has drop-in files"
		if err != nil {
			why = "it cannot be read"
		} else if odd != "" {
			why = "it has " + odd
		}
		b.Text = append(b.Text, fmt.Sprintf("%s configures %s, and %s: write %s/05-vmnet-%s-bridge.network "+
			"with [Match] Name=%[5]s and what it says of addresses and routes, and a file before it with Name=%[2]s and "+
			"[Link] Unmanaged=yes", file, nic.Name, why, networkdDir, network))
		return b, true
	}
	b.Files = []File{
		h.networkd(network, "-uplink", unmanaged([]string{nic.Name})),
		h.networkd(network, "-bridge", fmt.Sprintf("# A copy of %s, for the bridge.\n[Match]\nName=%s\n\n%s",
			file, network, copied)),
	}
	if netplan {
		b.Text = append(b.Text, fmt.Sprintf("what /etc/netplan says of %s has no effect from then on: change %s",
			nic.Name, b.Files[1].Path))
	}
	return b, true
}

// networkSections returns the sections of a file for an interface that suit a bridge: all but
// [Match] and the MAC address. odd names what does not: devices on top of the interface.
func networkSections(text string) (kept, odd string) {
	var b strings.Builder
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		if strings.HasPrefix(line, "[") {
			section = line
		}
		key, _, _ := strings.Cut(line, "=")
		key = strings.TrimSpace(key)
		switch {
		case section == "" || section == "[Match]":
			continue
		case section == "[Link]" && key == "MACAddress":
			continue
		case section == "[Network]" && slices.Contains([]string{
			"Bridge", "Bond", "VRF", "VLAN", "MACVLAN", "MACVTAP", "IPVLAN", "IPVTAP", "VXLAN", "Xfrm", "Tunnel",
		}, key):
			odd = key + "="
		}
		b.WriteString(line + "\n")
	}
	return b.String(), odd
}

// byIfupdown is for an interface of interfaces(5): its file is the administrator's own, so it is
// not written.
func (h Host) byIfupdown(network string, nic Interface) (Boot, bool) {
	paths, _ := filepath.Glob(h.path("/etc/network/interfaces.d/*"))
	var stanzas []string
	where := ""
	for _, path := range append([]string{h.path("/etc/network/interfaces")}, paths...) {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if found := ifaceStanzas(string(text), nic.Name, network); len(found) > 0 {
			stanzas, where = append(stanzas, found...), path
		}
	}
	if len(stanzas) == 0 {
		return Boot{}, false
	}
	b := Boot{Manager: "ifupdown", Text: []string{fmt.Sprintf(
		"in %s, write these lines in place of those about %s:", where, nic.Name)}}
	b.Text = append(b.Text, "allow-hotplug "+network)
	b.Text = append(b.Text, stanzas...)
	return b, true
}

// ifaceStanzas returns the iface stanzas of an interface, for another one.
func ifaceStanzas(text, nic, as string) (lines []string) {
	inside := false
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		switch w := words[0]; {
		case w == "iface":
			inside = len(words) > 1 && words[1] == nic
			if inside {
				lines = append(lines, strings.Join(append([]string{"iface", as}, words[2:]...), " "))
			}
		case slices.Contains([]string{"auto", "mapping", "source", "source-directory", "rename"}, w),
			strings.HasPrefix(w, "allow-"), strings.HasPrefix(w, "no-"):
			inside = false
		case inside:
			lines = append(lines, "    "+strings.Join(words, " "))
		}
	}
	return lines
}
