// Package control is the client's side of a running switch's control socket, and the messages of
// both sides. A [Client] adds, changes and lists ports. vmnet switch run serves the socket (package
// control/server).
//
// The socket is an AF_UNIX SOCK_SEQPACKET socket that serves only the switch's own user and root
// (SO_PEERCRED). A message is one JSON object of at most 64 KiB. A request may carry files
// (SCM_RIGHTS). The switch needs no privilege for them: the client that adds a port opens its files
// and passes them.
//
// A port with a holder is removed when the holder has ended, and with it all processes that have
// inherited its lifeline. So a guest's ports go with the guest. Other ports whose other end is gone
// stay until a client removes them.
package control

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/fdpass"
)

// Kinds of ports, with the files that the switch is given for them.
const (
	Tap    = "tap"    // the queues of a tap
	Packet = "packet" // the files of vswitch.PacketFiles, or those of internal/endpoint.FastPacketFiles
	Socket = "socket" // one end of an AF_UNIX datagram socketpair

	// Stream is a port on AF_UNIX stream sockets, for one process after the other. Its file is a
	// listening or connected socket, or the directory of Device, which is then the path at which
	// others listen (vswitch.OpenStream).
	Stream = "stream"

	// VhostUser is a port for a guest of a vhost-user frontend. Its file is a listening or
	// connected socket, or the directory of Device, which is then the path at which frontends
	// listen (vswitch.OpenVhostUser).
	VhostUser = "vhost-user"

	// VXLAN is a port to other hosts (Port.VXLAN). Its files are those of vswitch.VXLANFiles.
	VXLAN = "vxlan"

	// Tun is a port by which the kernel behind a tun is a station (Port.Tun). Its file is the tun's
	// queue.
	Tun = "tun"
)

var kinds = []string{Tap, Packet, Socket, Stream, VhostUser, VXLAN, Tun}

// A Port is a port of a switch, as AddPort takes it and Ports returns it.
type Port struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // one of the kinds above

	// Device is the interface's name, in replies its current one. It is empty for a socket and
	// VXLAN. For vhost-user and stream it is the path of the socket.
	Device string `json:"device,omitempty"`

	// Label is a text of at most 255 bytes that the switch keeps and does not read, like the
	// alias of a link (IFLA_IFALIAS).
	Label string `json:"label,omitempty"`

	// Holder is the process with which the port ends; 0 for none. AddPort takes a pidfd of it.
	Holder int `json:"holder,omitempty"`

	// Lifeline is the inode of a pipe; 0 for none. A port with a lifeline is removed only when
	// the Holder has ended and, in addition, no process has the pipe's write end open. So it
	// outlives a process that passes the guest on to another one, as QEMU's -daemonize does.
	// AddPort takes the read end.
	Lifeline uint64 `json:"lifeline,omitempty"`

	// Link says that a file of vswitch.LinkFile follows the queues of a tap or tun.
	Link bool `json:"link,omitempty"`

	// NoFastPath says why a Packet port was opened without the files of a fast path, if the switch
	// takes them (Info.FastPath); it may be empty.
	NoFastPath string `json:"no_fast_path,omitempty"`

	// Verified is that of vswitch.Wire. Only the process that has the switch can say so.
	Verified bool `json:"-"`

	// Queues is the number of pairs of queues that a VhostUser's guest may use; 0 means one.
	Queues int `json:"queues,omitempty"`

	VXLAN *vport.VXLAN `json:"vxlan,omitempty"` // of a port of that kind only
	Tun   *vport.Tun   `json:"tun,omitempty"`   // of a port of that kind only

	// Segments are the networks to which the device is connected outside the switch, as
	// internal/endpoint finds them. Two ports on one of them would make a loop.
	Segments []vport.Segment `json:"segments,omitempty"`
	Config   vport.Config    `json:"config"`
	Stats    *vport.Stats    `json:"stats,omitempty"` // only in replies
}

// Where returns what the port is connected to: its device, or for VXLAN the segment and its hosts.
func (p Port) Where() string {
	if p.VXLAN != nil {
		return p.VXLAN.String()
	}
	return p.Device
}

// MaxQueues is the most queues that a tap may have: a message also has room for a holder's two
// files and the LinkFile.
const MaxQueues = fdpass.MaxFiles - 3

// MaxPairs is the most pairs of queues of a vhost-user port, as vhostuser.MaxPairs.
const MaxPairs = 127

// Limits of a Port.
const (
	MaxLabel    = 255 // bytes
	maxSegments = 4
)

// Validate checks what can be checked without the port's files. Its error matches brport.ErrInvalid
// with errors.Is.
func (p Port) Validate() error {
	if err := p.validate(); err != nil {
		return fmt.Errorf("%w port: %w", brport.ErrInvalid, err)
	}
	return p.Config.Validate()
}

func (p Port) validate() error {
	switch {
	case !slices.Contains(kinds, p.Kind):
		return fmt.Errorf("kind %q: want %s", p.Kind, strings.Join(kinds, ", "))
	case p.Holder < 0:
		return fmt.Errorf("holder %d: want a process id", p.Holder)
	case p.Holder == 0 && p.Lifeline != 0:
		return errors.New("lifeline without a holder")
	case p.Link && p.Kind != Tap && p.Kind != Tun:
		return errors.New("link file without a tap: only ports of kind tap and tun take one")
	case p.Queues < 0 || p.Queues > MaxPairs || p.Queues > 0 && p.Kind != VhostUser:
		return fmt.Errorf("%d queues: want 1 to %d, for a port of kind %s only", p.Queues, MaxPairs, VhostUser)
	case (p.VXLAN != nil) != (p.Kind == VXLAN):
		return fmt.Errorf("a segment and kind %s: want a segment with a port of kind %s, and no other", p.Kind, VXLAN)
	case p.VXLAN != nil && p.Config.Hairpin:
		return errors.New("hairpin: a frame from the other hosts must not go back to them")
	case (p.Tun != nil) != (p.Kind == Tun):
		return fmt.Errorf("addresses and kind %s: want addresses with a port of kind %s, and no other", p.Kind, Tun)
	case p.Tun != nil && len(p.Config.MACs) != 1:
		return fmt.Errorf("%d MAC addresses: a port of kind %s has one (mac=MAC)", len(p.Config.MACs), Tun)
	case p.Stats != nil:
		return errors.New("stats are read-only and must not be set in a request")
	case len(p.Segments) > maxSegments:
		return fmt.Errorf("%d segments: want at most %d", len(p.Segments), maxSegments)
	}
	for _, s := range p.Segments {
		if err := errors.Join(checkText("segment", s.Key, 1, vport.MaxName),
			checkText("segment", s.Name, 1, vport.MaxName)); err != nil {
			return err
		}
	}
	if p.VXLAN != nil {
		if err := p.VXLAN.Validate(); err != nil {
			return err
		}
	}
	if p.Tun != nil {
		if err := p.Tun.Validate(); err != nil {
			return err
		}
	}
	return errors.Join(checkText("name", p.Name, 1, vport.MaxName), checkText("device", p.Device, 0, vport.MaxName),
		CheckLabel(p.Label), CheckLabel(p.NoFastPath))
}

// SetSlow sets NoFastPath to an error's text, shortened.
func (p *Port) SetSlow(err error) {
	if err == nil {
		return
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	p.NoFastPath = strings.ToValidUTF8(text[:min(len(text), MaxLabel)], "")
}

// CheckLabel returns an error unless a text can be a port's label.
func CheckLabel(label string) error {
	if len(label) > MaxLabel || !utf8.ValidString(label) {
		return fmt.Errorf("label of %d bytes: want at most %d, in UTF-8", len(label), MaxLabel)
	}
	return nil
}

// checkText accepts texts that can be typed as one word and shown on one line.
func checkText(what, s string, least, most int) error {
	odd := func(r rune) bool { return r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r) }
	if len(s) < least || len(s) > most || strings.ContainsFunc(s, odd) || strings.HasPrefix(s, "-") {
		return fmt.Errorf("%s %q: want %d to %d bytes without spaces, not beginning with -", what, s, least, most)
	}
	return nil
}

// Info describes a switch.
type Info struct {
	Name    string    `json:"name"` // as given to vmnet switch run
	PID     int       `json:"pid"`
	UID     int       `json:"uid"`
	Version string    `json:"version"` // of its program
	Started time.Time `json:"started"`
	Ports   int       `json:"ports"`
	Down    int       `json:"down,omitempty"` // number of ports that are not up
	FDB     FDBStats  `json:"fdb"`
	Ageing  int       `json:"ageing"` // seconds

	Addresses int `json:"addresses"` // the FDB's size, as it was asked for

	VLANFiltering bool `json:"vlan_filtering"` // the switch filters VLANs

	// FastPath is FastPathAuto if packet ports may have a fast path, and otherwise FastPathOff. It
	// is empty if the switch is older than that, and takes no files for it.
	FastPath string `json:"fast_path,omitempty"`

	// Sandbox has what confines the process besides its user, such as "seccomp"; none is "off".
	Sandbox  []string `json:"sandbox,omitempty"`
	FDStore  bool     `json:"fd_store,omitempty"` // the service manager keeps its ports, should it be killed
	Poll     float64  `json:"poll_us,omitempty"`  // vswitch.Config.Poll in microseconds
	PollCPUs []int    `json:"poll_cpus,omitempty"`

	// GuestMTU is the MTU in bytes that guests need for all of their frames to reach other hosts; 0
	// if the switch has no port of kind vxlan.
	GuestMTU int `json:"guest_mtu,omitempty"`
}

// What a switch says of fast paths (Info.FastPath).
const (
	FastPathAuto = "auto"
	FastPathOff  = "off"
)

// FDBStats counts what happened to addresses of the FDB since the switch began (vswitch.FDBStats).
type FDBStats struct {
	Entries int    `json:"entries"`
	Slots   int    `json:"slots"`   // the most entries that the table can have
	Moves   uint64 `json:"moves"`   // moved to another port
	Aged    uint64 `json:"aged"`    // not seen for the ageing time
	Evicted uint64 `json:"evicted"` // replaced by another address
	Refused uint64 `json:"refused"` // not learned: the port is at its limit, or its bucket has no room
}

// FDBEntry is an entry of a switch's forwarding database.
type FDBEntry struct {
	MAC string `json:"mac"`
	// VLAN is 0 if the switch does not filter VLANs. In a request, 0 means the port's VLAN for
	// untagged frames.
	VLAN   int    `json:"vlan,omitempty"`
	Port   string `json:"port"`
	Remote string `json:"remote,omitempty"` // the remote host behind a port of kind vxlan, if it is known
	Static bool   `json:"static,omitempty"` // added by a client: it neither ages nor moves
	Age    int    `json:"age"`              // seconds since it was seen
}

// Address parses the entry's MAC and checks its VLAN.
func (e FDBEntry) Address() (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(e.MAC)
	switch {
	case err != nil || len(mac) != 6 || mac[0]&1 != 0:
		return nil, fmt.Errorf("%w address %q: want 6 bytes such as 52:54:00:01:02:03, not multicast",
			brport.ErrInvalid, e.MAC)
	case e.VLAN < 0 || e.VLAN > 4094:
		return nil, fmt.Errorf("%w VLAN %d: want 1 to 4094, or 0 for none", brport.ErrInvalid, e.VLAN)
	}
	return mac, nil
}
