// Package qmp is a client of QEMU's monitor (QMP) with what the hot plug of a NIC needs: file
// descriptors passed with a command, typed errors, events, and commands that end with their
// context.
//
// QEMU's docs/interop/qmp-spec.rst specifies QMP, and qapi/*.json its commands. The monitor serves
// one client at a time, so an open [Conn] is also a lock on the guest's configuration, unless it
// goes through a [Relay].
//
// Out of scope are the out-of-band capability, and all commands that are not about NICs (use
// [Conn.Execute]).
package qmp
