// Package vswitch is a learning Ethernet switch in userspace, for hosts on which a kernel bridge
// cannot be used. A goroutine receives a frame from a queue, learns its source, and writes it to
// the queues of the destination ports. It neither allocates frames, nor passes them to another
// goroutine, nor takes a lock.
//
// A frame keeps its vnet header, so that a super-frame of 64 KiB crosses the switch in one piece if
// the destination port takes it. If it does not, package offload segments the frame and fills in
// checksums.
//
// The switch follows IEEE 802.1D and 802.1Q as the kernel's bridge does (net/bridge/br_input.c,
// br_forward.c), without a spanning tree and without multicast snooping.
//
// # A frame's path
//
// The steps, with the functions and files that take them:
//
//	receive a batch   queue.receive      tap.go, mmsg.go, poll.go, lane.go
//	parse the frame   frame.parse        frame.go
//	check its source  receiver.accept    forward.go
//	find its VLAN     table.classify     vlan.go
//	learn its source  FDB.Learn          fdb.go, fdb_slots.go
//	pick the targets  receiver.forward   forward.go, with storm.go and loop.go
//	check a target    receiver.between   forward.go
//	tag it            table.leaving      vlan.go, frame.go (retag)
//	segment it        receiver.finish    forward.go, package offload
//	send the list     queue.send         sender.go, ring.go, oversize.go
//
// A frame that a step refuses is counted with a [Reason] (reason.go). A capture wraps the first and
// the last step of a port's path (capture.go).
//
// # VLAN tags
//
// A frame's 802.1Q tag is in the frame, or beside it when a packet socket delivers it; putBack
// (mmsg.go) then inserts it. frame.parse reads the tag. If the switch filters VLANs, classify finds
// the frame's VLAN from the tag or the port, between compares it with the target's VLANs, and
// leaving says with which tag the frame leaves. retag writes that tag. A switch that does not
// filter leaves tags alone, and all frames are in VLAN 1. An 802.1ad tag is payload.
//
// # Around the datapath
//
// Package vport has a port's settings and counters as data, with a table of where each setting
// acts. Package internal/endpoint opens the files of packet ports: the socket, the claim of the
// device, the lane beside it. Package capture is a capture's reader. Package control asks a switch
// that runs in another process, whose side of the socket is package control/server.
package vswitch
