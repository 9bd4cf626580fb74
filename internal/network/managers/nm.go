package managers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// byNM is for an interface of NetworkManager. The bridge gets a profile with the interface's IP
// settings, and the interface another one by which it is the bridge's port. NetworkManager makes
// the bridge by them, for which the network then does the rest. An interface that it should no
// longer manage would be of no use: it takes such an interface down, and it gives no addresses to a
// bridge whose ports it does not manage.
func (h Host) byNM(network string, nic Interface) (Boot, bool) {
	state := h.fields(fmt.Sprintf("%s/devices/%d", nmRunning, nic.Index))
	if m := state["managed"]; m != "1" && m != "true" && m != "full" {
		return Boot{}, false
	}
	b := Boot{Manager: "NetworkManager"}
	path, sections := h.profile(state["connection-uuid"])
	kind := value(sections["connection"], "type")
	if path == "" || !slices.Contains([]string{"ethernet", "802-3-ethernet", "vlan"}, kind) ||
		sections["802-1x"] != "" {
		b.Text = append(b.Text, fmt.Sprintf("nmcli connection add type bridge ifname %s con-name %s, with the IP "+
			"settings of the profile of %s, and another profile of that with master %[1]s and a higher "+
			"autoconnect-priority", network, profileName(network), nic.Name))
		return b, true
	}
	b.Files = []File{
		h.nmProfile(network, "", bridgeProfile(network, nic, path, sections)),
		h.nmProfile(network, "-uplink", portProfile(network, nic, kind, sections)),
	}
	b.Text = append(b.Text, fmt.Sprintf("NetworkManager takes %s over before that by nmcli connection reload; nmcli "+
		"connection up %s; nmcli connection up %[2]s-uplink. Do so if %s has its address by DHCP", network,
		profileName(network), nic.Name))
	return b, true
}

// bridgeProfile returns that of a network's bridge. It has the interface's address, by which DHCP
// servers know the host, and the firewall's zone.
func bridgeProfile(network string, nic Interface, path string, sections map[string]string) string {
	text := fmt.Sprintf("# The IP settings are those of %s.\n[connection]\nid=%s\ntype=bridge\ninterface-name=%s\n",
		path, profileName(network), network)
	if zone := value(sections["connection"], "zone"); zone != "" {
		text += "zone=" + zone + "\n"
	}
	text += "autoconnect-slaves=1\n\n[bridge]\nstp=false\n"
	if nic.MAC != "" {
		text += "mac-address=" + nic.MAC + "\n"
	}
	for _, name := range []string{"ipv4", "ipv6", "proxy"} {
		if section := sections[name]; section != "" {
			text += "\n[" + name + "]\n" + section
		}
	}
	return text
}

// portProfile returns that by which an interface is the port of a network's bridge. It comes before
// the interface's own profile.
func portProfile(network string, nic Interface, kind string, sections map[string]string) string {
	text := fmt.Sprintf("[connection]\nid=%s-uplink\ntype=%s\ninterface-name=%s\nmaster=%s\nslave-type=bridge\n"+
		"autoconnect-priority=999\n", profileName(network), kind, nic.Name, network)
	for _, name := range []string{"ethernet", "802-3-ethernet", "vlan"} {
		if section := sections[name]; section != "" {
			text += "\n[" + name + "]\n" + section
		}
	}
	return text
}

// value returns that of a key of a section.
func value(section, key string) string {
	for line := range strings.Lines(section) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// Makes reports whether a manager makes a network's bridge, by a file that was written for the next
// boot.
func (h Host) Makes(network string) bool {
	text, err := os.ReadFile(h.nmProfile(network, "", "").Path)
	return err == nil && strings.HasPrefix(string(text), header(network))
}

// activationTimeout bounds how long a manager may take to make a bridge.
const activationTimeout = 20 * time.Second

// Activate has the manager that makes a network's bridge do so, if it runs. It returns once the
// interface is the bridge's port, or the manager has given up.
func (h Host) Activate(ctx context.Context, network string) error {
	if !h.exists(nmRunning) || !h.Makes(network) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, activationTimeout)
	defer cancel()
	return h.run(ctx, "nmcli", "connection", "up", profileName(network)+"-uplink")
}

// profile finds NetworkManager's file of the profile with that UUID, and its sections.
func (h Host) profile(uuid string) (path string, sections map[string]string) {
	if uuid == "" {
		return "", nil
	}
	for _, dir := range []string{nmDir, nmRunning, "/usr/lib/NetworkManager"} {
		paths, _ := filepath.Glob(h.path(dir + "/system-connections/*"))
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			sections := map[string]string{}
			section := ""
			for line := range strings.Lines(string(text)) {
				line = strings.TrimSpace(line)
				if name, ok := strings.CutPrefix(line, "["); ok {
					section = strings.TrimSuffix(name, "]")
				} else if line != "" {
					sections[section] += line + "\n"
				}
			}
			if slices.Contains(strings.Split(sections["connection"], "\n"), "uuid="+uuid) {
				return path, sections
			}
		}
	}
	return "", nil
}
