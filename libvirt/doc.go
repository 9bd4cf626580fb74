// Package libvirt is a client of the daemons that serve libvirt's QEMU driver, libvirtd and
// virtqemud, over their unix socket: calls that end with their context, many at a time; file
// descriptors both ways; events of which none is lost unnoticed; typed errors. Package domainxml
// reads and writes the XML that the calls carry.
//
// # Calls
//
// github.com/digitalocean/go-libvirt makes the calls: its code, generated from libvirt's sources,
// encodes arguments and decodes results. It waits for replies without a context, passes no file
// descriptors, trusts every length that it reads and loses events. So it has no access to the
// socket. Its net.Conn belongs to this package:
//
//   - It lets go-libvirt send one call at a time, checks that the procedure is the one asked
//
// for, and adds the files. A call whose context ends before its turn is not sent.
//   - It reads every message itself, within libvirt's own bounds, and decodes each reply by the
//
// form that its procedure has. go-libvirt receives only replies that are complete,
// well-formed and due. Refusals and malformed replies become errors here.
//   - It keeps events, keepalive messages and files. Subscriptions belong to this package.
//   - It plays the daemon in go-libvirt's handshake. Authentication and opening follow as calls,
//
// since go-libvirt would ignore polkit's answer and open in spite of a demand for SASL.
//
// A call whose context has ended leaves a goroutine behind until the daemon has answered or the
// connection has ended. There are never more of them than calls that fit into the socket.
//
// # Sources
//
// The wire format is libvirt's src/rpc/virnetprotocol.x and virkeepaliveprotocol.x; the
// procedures are src/remote/remote_protocol.x and qemu_protocol.x, as of libvirt 9.0. Numbers
// and structures of released procedures never change. Values of flags and enums are those of
// include/libvirt/libvirt-domain.h and virterror.h, through go-libvirt's constants.
//
// # Out of scope
//
// Transports other than unix sockets (they carry no descriptors), SASL, streams, and procedures
// that a NIC does not need.
package libvirt
