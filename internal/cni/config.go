// Package cni serves the commands of the Container Network Interface (the specification, versions
// 0.3.0 to 1.1.0) with attachments of package nsport. A plugin of the configuration's choice hands
// out the addresses.
package cni

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"vmnet/bridge/brport"
	"vmnet/internal/network/config"
	"vmnet/internal/nsport"
)

// network is the configuration of a network, as the runtime passes it. Its JSON keys are stable.
type network struct {
	CNIVersion   string          `json:"cniVersion"`
	Name         string          `json:"name"`
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	DNS          types.DNS       `json:"dns"`
	// IPAM is for the plugin that hands out addresses, which reads the whole configuration.
	IPAM       json.RawMessage `json:"ipam"`
	PrevResult map[string]any  `json:"prevResult"`
	// Valid are the attachments that a garbage collection leaves, also under an older key.
	Valid    []types.GCAttachment `json:"cni.dev/valid-attachments"`
	ValidOld json.RawMessage      `json:"cni.dev/attachments"`
	// Runtime has what the runtime adds for the capabilities.
	Runtime struct {
		MAC string   `json:"mac"`
		IPs []string `json:"ips"`
	} `json:"runtimeConfig"`

	// One of these says where the pod's interface leads.
	Bridge    string     `json:"bridge"`
	Network   string     `json:"network"`
	Macvlan   string     `json:"macvlan"`
	IPVlan    string     `json:"ipvlan"`
	Mode      string     `json:"mode"`
	MTU       int        `json:"mtu"`
	ConfigDir config.Dir `json:"configDir"` // of the networks' files
	brport.Settings
}

// parse reads a configuration. A key that it does not know is an error: a setting that is
// misspelled would have no effect.
func parse(text []byte) (*network, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	n := &network{}
	err := d.Decode(n)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("network configuration: %v", err),
			"vmnet-cni(8) has the keys")
	}
	return n, nil
}

// parseLoosely reads of a configuration what a removal needs, even if the rest is not valid: what
// was made by an earlier one must go.
func parseLoosely(text []byte) (*network, error) {
	var some struct {
		Name  string               `json:"name"`
		IPAM  json.RawMessage      `json:"ipam"`
		Valid []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(text, &some); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("network configuration: %v", err), "")
	}
	return &network{Name: some.Name, IPAM: some.IPAM, Valid: some.Valid}, nil
}

// ipam returns the name of the plugin that hands out addresses; empty for none.
func (n *network) ipam() (string, error) {
	if len(n.IPAM) == 0 {
		return "", nil
	}
	var p types.IPAM
	if err := json.Unmarshal(n.IPAM, &p); err != nil {
		return "", invalid("ipam: %v", err)
	}
	switch {
	case p.Type == "" && string(bytes.TrimSpace(n.IPAM)) != "{}":
		return "", invalid("ipam: no type, the plugin's name")
	case p.Type == "dhcp":
		return "", invalid("ipam: dhcp needs the interface before it has an address " +
			"(leave ipam out, and run a DHCP client in the pod)")
	}
	return p.Type, nil
}

// spec returns what the pod should have, without the addresses of the plugin that hands them out.
func (n *network) spec(args *skel.CmdArgs) (s nsport.Spec, err error) {
	s = nsport.Spec{
		Netns: shortNetns(args.Netns), ID: n.id(args.ContainerID, args.IfName), Interface: args.IfName,
		Bridge: n.Bridge, Network: n.Network, Macvlan: n.Macvlan, IPVlan: n.IPVlan,
		Mode: n.Mode, MTU: n.MTU, Port: n.Settings,
	}
	if s.MAC, err = n.mac(args.Args); err != nil {
		return s, err
	}
	if by, err := n.ipam(); err != nil || by != "" { // which gets the same addresses to hand out
		return s, err
	}
	for _, text := range n.Runtime.IPs {
		p, err := prefix(text, n.Network != "")
		if err != nil {
			return s, err
		}
		s.Addresses = append(s.Addresses, p)
	}
	return s, nil
}

// prefix parses an address of the runtime. Only on a network it may lack its prefix length.
func prefix(text string, bare bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err == nil {
		return p, nil
	}
	if a, err := netip.ParseAddr(text); err == nil && bare && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return p, invalid("runtimeConfig.ips: %q: want an IP address with its prefix length, such as 10.0.0.7/24", text)
}

// mac returns the address that the runtime or CNI_ARGS has chosen; nil for none.
func (n *network) mac(args string) (net.HardwareAddr, error) {
	var known struct {
		types.CommonArgs
		MAC types.UnmarshallableString
	}
	if err := types.LoadArgs(args, &known); err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %v", err),
			"known: MAC, IgnoreUnknown")
	}
	text := n.Runtime.MAC
	if text == "" {
		text = string(known.MAC)
	}
	if text == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(text)
	if err != nil {
		return nil, invalid("MAC address %q: want six bytes, such as 02:00:00:01:02:03", text)
	}
	return mac, nil
}

// prefixOf begins the ids of a network's attachments.
func prefixOf(network string) string { return "cni-" + digest(8, network) + "-" }

// id derives the attachment's id: the same for the same interface of the same container. It is
// short, since an alias has 255 bytes.
func (n *network) id(container, ifname string) string {
	return prefixOf(n.Name) + digest(12, container, ifname)
}

// digest returns so many hexadecimal digits of the parts' digest.
func digest(digits int, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return fmt.Sprintf("%x", sum)[:digits]
}

// shortNetns returns the name of a namespace that ip-netns(8) knows, for the same reason.
func shortNetns(path string) string {
	dir, name := filepath.Split(filepath.Clean(path))
	digits := strings.Trim(name, "0123456789") == ""
	if (dir == "/run/netns/" || dir == "/var/run/netns/") && !digits { // which would be a PID
		return name
	}
	return path
}

// invalid is the error for a configuration with a value that cannot be.
func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}
