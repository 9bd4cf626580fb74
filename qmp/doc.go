// Package qmp is a client of QEMU's monitor (QMP) with what hot-plugging a NIC
// needs: file descriptors handed over with a command, typed errors, events, and
// commands that end with their context.
//
// QMP is described in QEMU's docs/interop/qmp-spec.rst, its commands in
// qapi/*.json. The monitor serves one client at a time, so an open [Conn] is also
// a lock on the guest's configuration, unless it goes through a [Relay].
//
// Out of scope: the out-of-band capability, and everything of QEMU that is not
// about NICs (use [Conn.Execute]).
package qmp
