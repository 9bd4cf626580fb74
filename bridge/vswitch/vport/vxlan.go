package vport

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vmnet/bridge/vxlan"
)

// VXLAN says which segment (RFC 7348) a port of kind vxlan is on, and which other hosts have it.
type VXLAN struct {
	VNI int `json:"vni"` // 1 to 16777215

	// Remotes are the other hosts. Broadcasts and frames to unknown addresses are sent to each of
	// them, and only they are heard.
	Remotes []netip.Addr `json:"remotes"`

	// Local is the address of this host by which the others know it. If it is not valid, the
	// kernel chooses one for each remote host.
	Local netip.Addr `json:"local,omitzero"`

	Port int `json:"port,omitempty"` // UDP; 0 means 4789
}

// UDPPort returns the UDP port.
func (v VXLAN) UDPPort() int { return cmp.Or(v.Port, vxlan.DefaultPort) }

// Overhead returns by how many bytes a frame grows in the segment.
func (v VXLAN) Overhead() int { return vxlan.OverheadFor(v.Remotes[0]) }

// String returns the segment and its hosts in short: vni 77 of 192.0.2.2.
func (v VXLAN) String() string {
	const most = 3
	var hosts []string
	for _, a := range v.Remotes[:min(len(v.Remotes), most)] {
		hosts = append(hosts, a.String())
	}
	if more := len(v.Remotes) - most; more > 0 {
		hosts = append(hosts, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("vni %d of %s", v.VNI, strings.Join(hosts, ","))
}

// Validate returns what contradicts itself or RFC 7348, or nil.
func (v VXLAN) Validate() error {
	switch {
	case v.VNI < 1 || v.VNI > vxlan.MaxVNI:
		return fmt.Errorf("VNI %d: want 1 to %d", v.VNI, vxlan.MaxVNI)
	case len(v.Remotes) == 0:
		return errors.New("no remote host: want the addresses of the other hosts (remote=ADDRESS)")
	case len(v.Remotes) > vxlan.MaxRemotes:
		return fmt.Errorf("%d remote hosts: want at most %d", len(v.Remotes), vxlan.MaxRemotes)
	case v.Port < 0 || v.Port > 65535:
		return fmt.Errorf("UDP port %d: want 1 to 65535", v.Port)
	}
	first := v.Remotes[0]
	for i, a := range v.Remotes {
		if err := v.checkHost("remote", a, first); err != nil {
			return err
		}
		if slices.Contains(v.Remotes[:i], a) {
			return fmt.Errorf("remote address %s: it is given twice", a)
		}
	}
	switch {
	case !v.Local.IsValid():
		return nil
	case slices.Contains(v.Remotes, v.Local):
		return fmt.Errorf("remote address %s: it is the local one (name the other hosts only)", v.Local)
	}
	return v.checkHost("local", v.Local, first)
}

func (v VXLAN) checkHost(what string, a, first netip.Addr) error {
	if err := vxlan.CheckHost(what+" address", a); err != nil {
		return err
	}
	if a.Is4() != first.Is4() {
		return fmt.Errorf("%s address %s: the remote one, %s, is of the other IP version", what, a, first)
	}
	return nil
}
