// Package evpn asks FRR what it knows of a VXLAN segment, by its shell vtysh(1).
package evpn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/tool"
)

// Status is what FRR says of one segment.
type Status struct {
	Running bool     `json:"running"`     // zebra and bgpd answer
	Known   bool     `json:"known"`       // they announce the segment
	Remotes []string `json:"remotes"`     // the hosts that have announced it
	MACs    int      `json:"macs"`        // guests' addresses, here and there
	Peers   int      `json:"peers"`       // BGP neighbors with which EVPN is exchanged
	Up      int      `json:"established"` // how many of them are connected
}

// patience bounds one question. vtysh waits without a limit for a daemon that has stopped.
const patience = 5 * time.Second

// stateDir has a directory for each of several FRRs on one host (option -N of its daemons).
const stateDir = "/run/frr"

// vtyGroup may connect to FRR's daemons besides root.
const vtyGroup = "frrvty"

// FRR is one FRR of the host: that of the network namespace NS.
type FRR struct {
	NS *netns.NS
	// Name is the namespace's name in ip-netns(8); empty for the host's own. An FRR for a namespace
	// has its sockets in a directory of that name, if it was started so.
	Name string
}

// OfNetns returns the FRR of a namespace that the user has named so, or of the host's own if name
// is empty. A path has no FRR of its own.
func OfNetns(ns *netns.NS, name string) FRR {
	if strings.Contains(name, "/") {
		name = ""
	}
	return FRR{NS: ns, Name: name}
}

// ErrNotInstalled is matched by the error of Ask if vtysh is not installed.
var ErrNotInstalled = tool.ErrNotInstalled

// Answer is what FRR says of all segments of the host.
type Answer struct {
	running   bool
	segments  map[string]segmentJSON
	peers, up int
}

// Ask asks FRR of all segments by two questions, however many there are. An FRR that does not run
// is no error.
func (f FRR) Ask(ctx context.Context) (a Answer, err error) {
	segments, err := f.run(ctx, "show evpn vni json")
	if err != nil {
		return a, err
	}
	peers, err := f.run(ctx, "show bgp l2vpn evpn summary json")
	if err != nil || segments == nil || peers == nil {
		return a, err
	}
	a.running = true
	if err := a.readSegments(segments); err != nil {
		return a, err
	}
	return a, a.readPeers(peers)
}

// Of returns what FRR says of the segment vni.
func (a Answer) Of(vni int) Status {
	v, known := a.segments[strconv.Itoa(vni)]
	s := Status{
		Running: a.running, Known: known, MACs: v.MACs, Peers: a.peers, Up: a.up, Remotes: []string{},
	}
	for _, text := range v.Remotes {
		if addr, err := netip.ParseAddr(text); err == nil {
			s.Remotes = append(s.Remotes, addr.String())
		}
	}
	slices.Sort(s.Remotes)
	return s
}

// run returns what a command prints; nil if no daemon answers.
func (f FRR) run(ctx context.Context, command string) ([]byte, error) {
	vtysh, err := tool.Find("vtysh", "frr")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	argv := []string{vtysh, "-c", command}
	if info, err := os.Stat(filepath.Join(stateDir, f.Name)); f.Name != "" && err == nil && info.IsDir() {
		argv = []string{vtysh, "-N", f.Name, "-c", command}
	}
	out, err := tool.Run(ctx, f.NS, "", argv...)
	var failure *tool.Failure
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("FRR does not answer %q within %v (systemctl status frr)", command, patience)
	case errors.As(err, &failure) && os.Geteuid() != 0:
		return nil, fmt.Errorf("%w (it needs root, or the group %s)", err, vtyGroup)
	case errors.As(err, &failure):
		return nil, nil
	}
	return out, err
}

// segmentJSON is what "show evpn vni json" says of a segment.
type segmentJSON struct {
	MACs    int      `json:"numMacs"`
	Remotes []string `json:"remoteVteps"`
}

// readSegments decodes "show evpn vni json": an object by the number of each segment.
func (a *Answer) readSegments(text []byte) error {
	if err := json.Unmarshal(text, &a.segments); err != nil {
		return fmt.Errorf("what FRR says of its VNIs: %w", err)
	}
	return nil
}

// readPeers decodes "show bgp l2vpn evpn summary json", in which a bgpd without EVPN says nothing.
func (a *Answer) readPeers(text []byte) error {
	var summary struct {
		Peers map[string]struct {
			State string `json:"state"`
		} `json:"peers"`
	}
	if err := json.Unmarshal(text, &summary); err != nil {
		return fmt.Errorf("what FRR says of its BGP neighbors: %w", err)
	}
	for _, p := range summary.Peers {
		a.peers++
		if p.State == "Established" {
			a.up++
		}
	}
	return nil
}

// Trouble returns what keeps guests of a segment from reaching those of other hosts, and the cure;
// empty if nothing does.
func (s Status) Trouble(vni int) (text, cure string) {
	switch {
	case !s.Running:
		return "FRR does not run, and adds no remote host", "systemctl start frr, with bgpd=yes in /etc/frr/daemons"
	case !s.Known:
		return fmt.Sprintf("FRR does not announce VNI %d", vni), "advertise-all-vni in bgpd: docs/evpn.md"
	case s.Peers == 0:
		return "FRR has no neighbor for EVPN", "neighbor ADDRESS activate in address-family l2vpn evpn: docs/evpn.md"
	case s.Up == 0:
		return "FRR is connected to no neighbor", "vtysh -c 'show bgp l2vpn evpn summary'"
	case len(s.Remotes) == 0:
		return fmt.Sprintf("no other host announces VNI %d", vni), "create the bridge on the other hosts, too"
	}
	return "", ""
}

// String returns the status in one line.
func (s Status) String() string {
	if !s.Running {
		return "does not run"
	}
	known := "does not announce the segment"
	if s.Known {
		known = fmt.Sprintf("announces the segment, %d MACs, %d remote hosts", s.MACs, len(s.Remotes))
	}
	return fmt.Sprintf("%s, %d of %d neighbors connected", known, s.Up, s.Peers)
}
