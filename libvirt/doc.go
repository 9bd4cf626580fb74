// Package libvirt is a client of the daemons that serve libvirt's QEMU driver, libvirtd and
// virtqemud, over their unix socket. Calls end with their context and run concurrently; file
// descriptors pass in both directions; lost events are counted; errors are typed. Package domainxml
// reads and writes the XML that the calls carry.
//
// # Calls
//
// github.com/digitalocean/go-libvirt makes the calls: its code, generated from libvirt's sources,
// encodes arguments and decodes results. It waits for replies without a context, passes no file
// descriptors, trusts every length that it reads and loses events. So it does not get the socket,
// but a net.Conn of this package:
//
//   - It lets go-libvirt send one call at a time, checks that it is the requested procedure, and
//     adds the files. A call whose context ends before its turn is not sent.
//   - It reads every message itself, within libvirt's own bounds, and checks each reply against its
//     procedure's form. go-libvirt receives only replies that are complete, well-formed and
//     expected. Refusals and malformed replies become errors here.
//   - It handles events, keepalive messages and files. Subscriptions belong to this package.
//   - It plays the daemon in go-libvirt's handshake. Authentication and opening follow as calls,
//     since go-libvirt would ignore polkit's answer and a demand for SASL.
//
// A call whose context has ended leaves a goroutine until the daemon has answered or the connection
// has ended. The number of calls that fit into the socket bounds the number of those goroutines.
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
