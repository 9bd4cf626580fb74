// Package control is the control socket of a running switch, both sides: vmnet switch run serves it, and whoever wants
// ports in the switch, or to know of them, is a Client.
//
// The socket is an AF_UNIX SOCK_SEQPACKET one, for the switch's own user and root alone (SO_PEERCRED). A message is one
// JSON object of at most 64 KiB; files go along with a request (SCM_RIGHTS). The switch needs no right for what it is
// given: who adds a port opens its files, and passes them.
//
// A port with a holder is removed when that process ends, however it does, and with it whoever has inherited its lifeline;
// other ports stay, ended, until somebody removes them. So what is plugged in for a guest goes with the guest.
package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"vmnet/bridge"
	"vmnet/bridge/vswitch"
	"vmnet/internal/kernel/fdpass"
)

// Kinds of ports, by what the switch is given of them.
const (
	Tap    = "tap"    // the queues of a tap
	Packet = "packet" // the files of vswitch.PacketFiles
	Socket = "socket" // one end of an AF_UNIX datagram socketpair
)

// A Port is a port of a switch, as AddPort is told and Ports tells.
type Port struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	Device string `json:"device,omitempty"` // the interface's name, as it is in Ports' answer; empty for a socket
	Label  string `json:"label,omitempty"`  // at most 255 bytes that mean nothing to the switch, as links have them in IFLA_IFALIAS
	Holder int    `json:"holder,omitempty"` // the process whose end the port's end is; 0 is none. AddPort is given a pidfd of it
	// Lifeline is the inode of a pipe; 0 is none. The port of a Holder with a lifeline stays until, besides, nobody has the
	// pipe's writing end open: so it outlives a process that has passed the guest on to another one, as QEMU's -daemonize does.
	// AddPort is given the reading end.
	Lifeline uint64 `json:"lifeline,omitempty"`
	Link     bool   `json:"link,omitempty"` // of a tap: behind its queues comes the file of vswitch.LinkFile
	// Segments are what the device is joined to beside the switch, as vswitch.SegmentsOf finds it:
	// ports on one of them would make a loop.
	Segments []vswitch.Segment  `json:"segments,omitempty"`
	Config   vswitch.PortConfig `json:"config"`
	Stats    *vswitch.PortStats `json:"stats,omitempty"` // in answers only
}

// MaxQueues is the most that a tap may have: beside a holder's two files and the LinkFile, as many files as one
// message takes.
const MaxQueues = fdpass.MaxFiles - 3

// Bounds of a Port, in bytes.
const (
	maxName     = 127
	maxLabel    = 255
	maxSegments = 4
	maxPort     = 16 << 10 // as JSON, without counters: a trunk of a few hundred ranges
)

// Validate checks what can be checked without the port's files. Its error Is bridge.ErrInvalid.
func (p Port) Validate() error {
	if err := p.validate(); err != nil {
		return fmt.Errorf("%w port: %w", bridge.ErrInvalid, err)
	}
	return p.Config.Validate()
}

func (p Port) validate() error {
	switch {
	case p.Kind != Tap && p.Kind != Packet && p.Kind != Socket:
		return fmt.Errorf("kind %q: want %s, %s or %s", p.Kind, Tap, Packet, Socket)
	case p.Holder < 0:
		return fmt.Errorf("holder %d: want a process id", p.Holder)
	case p.Holder == 0 && p.Lifeline != 0:
		return errors.New("a lifeline without the process that it was given to")
	case p.Link && p.Kind != Tap:
		return errors.New("a link file is a tap's")
	case p.Stats != nil:
		return errors.New("counters are not for the asking")
	case len(p.Segments) > maxSegments:
		return fmt.Errorf("%d segments: want at most %d", len(p.Segments), maxSegments)
	}
	for _, s := range p.Segments {
		if err := errors.Join(checkText("segment", s.Key, 1, maxName), checkText("segment", s.Name, 1, maxName)); err != nil {
			return err
		}
	}
	return errors.Join(checkText("name", p.Name, 1, maxName), checkText("device", p.Device, 0, maxName), CheckLabel(p.Label))
}

// CheckLabel tells whether a text can be a port's label.
func CheckLabel(label string) error {
	if len(label) > maxLabel || !utf8.ValidString(label) {
		return fmt.Errorf("label of %d bytes: want at most %d, in UTF-8", len(label), maxLabel)
	}
	return nil
}

// checkText allows what can be typed as one word and shown in one line.
func checkText(what, s string, least, most int) error {
	odd := func(r rune) bool { return r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r) }
	if len(s) < least || len(s) > most || strings.ContainsFunc(s, odd) || strings.HasPrefix(s, "-") {
		return fmt.Errorf("%s %q: want %d to %d bytes without blanks, not beginning with -", what, s, least, most)
	}
	return nil
}

// Info is what a switch tells of itself.
type Info struct {
	Name    string           `json:"name"` // as it was run
	PID     int              `json:"pid"`
	UID     int              `json:"uid"`
	Version string           `json:"version"` // of its program
	Started time.Time        `json:"started"`
	Ports   int              `json:"ports"`
	Down    int              `json:"down,omitempty"` // ports among them that are not up
	FDB     vswitch.FDBStats `json:"fdb"`
	Ageing  int              `json:"ageing"` // seconds

	VLANFiltering bool `json:"vlan_filtering"` // it keeps VLANs apart
}

// FDBEntry is one address that the switch knows.
type FDBEntry struct {
	MAC    string `json:"mac"`
	VLAN   int    `json:"vlan,omitempty"` // 0 where the switch does not filter VLANs; in a request, the one of the port's untagged frames
	Port   string `json:"port"`
	Static bool   `json:"static,omitempty"` // told, not learned: it neither ages nor moves
	Age    int    `json:"age"`              // seconds since it was seen
}

// address is the entry's.
func (e FDBEntry) address() (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(e.MAC)
	switch {
	case err != nil || len(mac) != 6 || mac[0]&1 != 0:
		return nil, fmt.Errorf("%w address %q: want 6 bytes such as 52:54:00:01:02:03, not multicast", bridge.ErrInvalid, e.MAC)
	case e.VLAN < 0 || e.VLAN > 4094:
		return nil, fmt.Errorf("%w VLAN %d: want 1 to 4094, or 0 for none", bridge.ErrInvalid, e.VLAN)
	}
	return mac, nil
}

// maxMessage is the most bytes of a message.
const maxMessage = 64 << 10

// request is what a client sends. Its files are the verb's.
type request struct {
	Do    string    `json:"do"`
	Port  *Port     `json:"port,omitempty"`  // add-port
	Name  string    `json:"name,omitempty"`  // a port's
	Label string    `json:"label,omitempty"` // set-label
	Entry *FDBEntry `json:"entry,omitempty"` // add-static, remove-static

	Capture *vswitch.CaptureConfig `json:"capture,omitempty"`
}

// answer is what the switch sends: several with More for what does not fit into one, and a last one without.
type answer struct {
	More  bool           `json:"more,omitempty"`
	Error *refusal       `json:"error,omitempty"`
	Info  *Info          `json:"info,omitempty"`
	Ports list[Port]     `json:"ports,omitempty"`
	FDB   list[FDBEntry] `json:"fdb,omitempty"`
}

// refusal is an error that has crossed the wire: its text, and which of the errors below it Is.
type refusal struct {
	Text string `json:"text"`
	Kind string `json:"kind,omitempty"`
}

func (r *refusal) Error() string { return r.Text }

func (r *refusal) Is(target error) bool {
	return r.Kind == "exist" && target == fs.ErrExist ||
		r.Kind == "not-exist" && target == fs.ErrNotExist ||
		r.Kind == "invalid" && target == bridge.ErrInvalid
}

// refuse makes err fit for the wire.
func refuse(err error) *refusal {
	r := &refusal{Text: err.Error()}
	switch {
	case errors.Is(err, fs.ErrExist):
		r.Kind = "exist"
	case errors.Is(err, fs.ErrNotExist):
		r.Kind = "not-exist"
	case errors.Is(err, bridge.ErrInvalid):
		r.Kind = "invalid"
	}
	if len(r.Text) > maxMessage/8 { // each byte may become six
		r.Text = r.Text[:maxMessage/8]
	}
	return r
}
