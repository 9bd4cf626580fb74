// Package libvirt is a client of the daemons that serve libvirt's QEMU driver, libvirtd and
// virtqemud, over their unix socket: calls that end with their context, many at a time; file
// descriptors both ways; events of which none is lost unnoticed; typed errors.
//
// The wire format is libvirt's src/rpc/virnetprotocol.x and virkeepaliveprotocol.x; the
// procedures are src/remote/remote_protocol.x and qemu_protocol.x, as of libvirt 9.0: numbers
// and structures of released procedures never change. Values of flags and enums are those of
// include/libvirt/libvirt-domain.h and virterror.h.
//
// Out of scope: other transports than unix sockets (they carry no descriptors), SASL,
// streams, and procedures that a NIC does not need.
package libvirt
