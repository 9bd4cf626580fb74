// Package capture is the reader's side of a capture of a switch's frames: what is captured
// ([Config]), and the copies that arrive ([Reader], [Frame]). Package vswitch writes them.
package capture

import (
	"fmt"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
)

// A Config says which frames are captured.
type Config struct {
	Ports   []string `json:"ports"`             // names of the captured ports, each once
	In      bool     `json:"in,omitempty"`      // incoming frames; neither In nor Out means both
	Out     bool     `json:"out,omitempty"`     // outgoing frames
	Drops   bool     `json:"drops,omitempty"`   // only dropped frames, with the reason
	Snaplen int      `json:"snaplen,omitempty"` // bytes captured of each Ethernet frame; 0 means all
}

// Validate checks what can be checked without the switch. Its error matches brport.ErrInvalid with
// errors.Is.
func (cfg Config) Validate() error {
	switch {
	case len(cfg.Ports) == 0 || len(cfg.Ports) > vport.MaxPorts:
		return fmt.Errorf("%w capture: %d ports: want 1 to %d", brport.ErrInvalid, len(cfg.Ports), vport.MaxPorts)
	case cfg.Snaplen < 0:
		return fmt.Errorf("%w capture: snaplen %d: want 0 or more bytes", brport.ErrInvalid, cfg.Snaplen)
	}
	seen := map[string]bool{}
	for _, name := range cfg.Ports {
		if seen[name] {
			return fmt.Errorf("%w capture: port %q is given twice", brport.ErrInvalid, name)
		}
		seen[name] = true
	}
	return nil
}

// Direction says in which direction a frame passed a port.
type Direction uint8

// The directions.
const (
	In  Direction = iota // into the switch
	Out                  // out of it
)

// String returns "in" or "out".
func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}
