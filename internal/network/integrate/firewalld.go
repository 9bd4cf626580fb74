package integrate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/network/config"
	"vmnet/internal/network/tool"
)

// zone is the zone of firewalld that all networks are in.
const zone = "vmnet"

// zoneXML is the zone (firewalld.zone(5)): it lets pass what guests send to other networks, and of
// what they send to the host ICMP, and what the administrator adds. firewalld itself lets answers
// and forwards pass.
const zoneXML = `<?xml version="1.0" encoding="utf-8"?>
<zone target="ACCEPT">
  <short>vmnet</short>
  <description>Guests of vmnet's networks. They reach other networks, and of this host the services
  that are added to this zone. See vmnet-network(8).</description>
  <protocol value="icmp"/>
  <protocol value="ipv6-icmp"/>
  <rule priority="32767">
    <reject/>
  </rule>
</zone>
`

// zones are firewalld's zones with their interfaces: those of its configuration and, if it runs,
// those that are in effect.
type zones struct{ permanent, runtime map[string][]string }

// of returns the zone of an interface; empty if it is in none.
func of(zones map[string][]string, link string) string {
	for name, links := range zones {
		if slices.Contains(links, link) {
			return name
		}
	}
	return ""
}

func (h *Host) compareFirewalld(ctx context.Context, network string, want *config.Network,
) (missing, surplus []Rule, err error) {
	active := slices.ContainsFunc(h.Ruleset.Tables(), func(name string) bool { return name == "firewalld" })
	if want != nil && !active {
		return nil, nil, nil
	}
	if h.firewalld == nil {
		z, err := h.readZones(ctx, active)
		if errors.Is(err, tool.ErrNotInstalled) && !active {
			return nil, nil, nil
		}
		if err != nil {
			return nil, nil, err
		}
		h.firewalld = z
	}
	z := h.firewalld
	for _, c := range []struct {
		zones map[string][]string
		rule  Rule
	}{{z.permanent, h.zoneMember(network, active, true)}, {z.runtime, h.zoneMember(network, active, false)}} {
		switch is := of(c.zones, network); {
		case want != nil && is == "":
			missing = append(missing, c.rule)
		case want == nil && is == zone:
			surplus = append(surplus, c.rule)
		}
	}
	members, there := z.permanent[zone]
	switch {
	case want != nil && len(missing) > 0 && (!there || z.runtime[zone] == nil):
		missing = append([]Rule{h.zoneRule(active)}, missing...)
	case want == nil && there && !slices.ContainsFunc(members, func(m string) bool { return m != network }):
		surplus = append(surplus, h.zoneRule(active))
	}
	return missing, surplus, nil
}

// firewallCmd returns the program that changes firewalld's configuration, with the option for that.
func firewallCmd(active bool) []string {
	if active {
		return []string{"firewall-cmd", "--permanent"}
	}
	return []string{"firewall-offline-cmd"}
}

func (h *Host) readZones(ctx context.Context, active bool) (*zones, error) {
	out, err := h.Run(ctx, append(firewallCmd(active), "--list-all-zones")...)
	if err != nil {
		return nil, err
	}
	z := &zones{permanent: parseZones(out)}
	if active {
		out, err = h.Run(ctx, "firewall-cmd", "--list-all-zones")
		z.runtime = parseZones(out)
	}
	return z, err
}

// parseZones parses what --list-all-zones prints: a line with the name of each zone, and indented
// below it its settings.
func parseZones(out string) map[string][]string {
	zones, name := map[string][]string{}, ""
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case line[0] != ' ' && line[0] != '\t':
			name = f[0]
			zones[name] = []string{}
		case f[0] == "interfaces:":
			zones[name] = append(zones[name], f[1:]...)
		}
	}
	return zones
}

// zoneMember is the membership of a network's bridge, permanent or in effect.
func (h *Host) zoneMember(network string, active, permanent bool) Rule {
	argv := []string{"firewall-cmd"}
	if permanent {
		argv = firewallCmd(active)
	}
	argv = append(argv, "--zone="+zone)
	change := func(option string) func(context.Context) error {
		argv := append(slices.Clone(argv), option+network)
		return func(ctx context.Context) error {
			_, err := h.Run(ctx, argv...)
			if says(err, "ALREADY_ENABLED", "ZONE_ALREADY_SET", "NOT_ENABLED", "UNKNOWN_INTERFACE") {
				return nil
			}
			return err
		}
	}
	const add, remove = "--add-interface=", "--remove-interface="
	return Rule{
		Owner: "firewalld", Text: strings.Join(argv, " ") + " " + add + network,
		add: change(add), remove: change(remove),
	}
}

// zoneRule is the zone itself.
func (h *Host) zoneRule(active bool) Rule {
	return Rule{
		Owner: "firewalld",
		Text:  "firewall-cmd --permanent --new-zone=" + zone + ", with target ACCEPT, and firewall-cmd --reload",
		add:   h.addZone,
		// firewalld forgets the empty zone that is in effect when it loads its configuration next.
		remove: func(ctx context.Context) error {
			z, err := h.readZones(ctx, active)
			if err != nil {
				return err
			}
			if members, there := z.permanent[zone]; !there || len(members) > 0 {
				return nil // another network is in it
			}
			_, err = h.Run(ctx, append(firewallCmd(active), "--delete-zone="+zone)...)
			return err
		},
	}
}

// addZone adds the zone as a whole, and has firewalld load it unless the zone is in effect already.
func (h *Host) addZone(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "vmnet-zone")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, zone+".xml") // firewall-cmd wants that ending
	if err := os.WriteFile(file, []byte(zoneXML), 0o644); err != nil {
		return err
	}
	_, err = h.Run(ctx, "firewall-cmd", "--permanent", "--new-zone-from-file="+file, "--name="+zone)
	if err != nil && !says(err, "NAME_CONFLICT") {
		return err
	}
	z, err := h.readZones(ctx, true)
	if err != nil || z.runtime[zone] != nil {
		return err
	}
	_, err = h.Run(ctx, "firewall-cmd", "--reload")
	return err
}
