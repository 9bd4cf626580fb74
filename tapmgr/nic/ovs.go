package nic

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"

	"vmnet/internal/stablemac"
)

const (
	maxIfaceID    = 64  // bytes: the record has to hold it
	maxSocketPath = 107 // sun_path of unix(7) less its NUL
)

// DefaultIfaceID returns the id by which OVN knows a NIC whose Spec has none: a UUID, always the
// same on one machine.
func DefaultIfaceID(vm, nic string) string { return stablemac.UUID("iface", vm, nic) }

// OVSIfaceID returns the id by which OVN knows the NIC; empty if it is no port of Open vSwitch.
func (r Record) OVSIfaceID() string {
	if r.Type != TypeOVS {
		return ""
	}
	return cmp.Or(r.IfaceID, DefaultIfaceID(r.VM, r.NIC))
}

// validateOVS checks what concerns a bridge of Open vSwitch only. Whether the bridge is one, the
// host knows.
func (s Spec) validateOVS() error {
	switch {
	case s.IfaceID == "" && s.OVSDB == "":
		return nil
	case s.Bridge == "":
		return errors.New("--iface-id and --ovsdb are for a NIC on a bridge of Open vSwitch (--bridge)")
	case s.IfaceID != "" && !formed(s.IfaceID, maxIfaceID, letters+digits, "_.:-"):
		return fmt.Errorf("iface-id %.80q: want 1 to %d letters, digits and _.:-, a letter or digit first",
			s.IfaceID, maxIfaceID)
	case s.OVSDB != "" && (!filepath.IsAbs(s.OVSDB) || len(s.OVSDB) > maxSocketPath):
		return fmt.Errorf("ovsdb %.120q: want the absolute path of a socket, of at most %d bytes",
			s.OVSDB, maxSocketPath)
	}
	return nil
}
