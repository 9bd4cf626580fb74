// Package vswitch is a learning Ethernet switch in userspace, for hosts on which a kernel bridge
// cannot be used. A goroutine receives a frame from a queue, learns its source, and writes it to
// the queues of the destination ports. It neither allocates frames, nor passes them to another
// goroutine, nor waits for a lock that another port's goroutine holds, except that of a ring in a
// guest's memory, of a stream's end, or of the fast paths while an address leaves these.
//
// A frame keeps its vnet header, so that a super-frame of 64 KiB crosses the switch in one piece if
// the destination port takes it. If it does not, package offload segments the frame and fills in
// checksums.
//
// Of a long frame from a guest's memory, only the start is copied before it is sent, and the rest
// (frame.rest) stays where it is until the batch is done. Another guest's ring gets a copy of it, a
// system call gets it as further pieces. What reads more than headers has the frame copied first
// (receiver.whole): segmentation, checks of headers that are not all in the start, and wires that
// do not set Wire.pieces.
//
// The switch follows IEEE 802.1D and 802.1Q as the kernel's bridge does (net/bridge/br_input.c,
// br_forward.c), without a spanning tree and without multicast snooping.
//
// # Wires
//
// A port's frames pass through its wire (wire.go), which is of one of seven kinds. A tap is on a
// tap wire only if the switch itself has the tap's queues. A guest's tap is on a packet wire: QEMU
// has its queues, and the switch has its kernel side. A lane is a tap beside a packet wire.
//
//	attached                     wire        opened by      queue        a received tag is
//	tap (--tap)                  tap         OpenTap        tapQueue     in the frame
//	device (--packet)            packet      OpenPacket     packetQueue  beside the frame
//	  and its lane, on a veth                takeLane       laneQueue    in the frame
//	guest (--via tap)            packet      OpenPacket     packetQueue  beside the frame
//	guest (--via socket), or
//	  another program (--stream) stream      OpenStream     streamQueue  in the frame
//	other programs               socket      OpenSocket     mmsgQueue    in the frame
//	guest (--via vhost-user)     vhost-user  OpenVhostUser  vhostQueue   in the frame
//	other hosts (--vxlan)        vxlan       OpenVXLAN      vxlanQueue   in the frame
//	the host's IP (--tun)        tun         OpenTun        tunQueue     none
//
// A packetQueue is an mmsgQueue with a second path and a receive ring (arrivals), and a laneQueue
// is a tapQueue. Which wire a guest has is decided by portOf in internal/backend/switch.go. vmnet's
// programs open a packet wire in two steps: PacketFiles where the privilege is, and OpenPacketFiles
// in the switch's process.
//
// # A frame's path
//
// The functions as they call each other, with the reasons for which they drop a frame (reason.go):
//
//	step                      function             files              drops with
//	serve a queue             receiver.run         forward.go
//	  receive a batch
//	    from a tap, a lane    tapQueue.receive     tap.go
//	    from a packet wire    packetQueue.receive  packet.go
//	      by its ring         packetQueue.fillSlots, arrivals.go      Overrun, Unreadable, Giant,
//	                                                                  Indescribable
//	      or a socket wire    mmsgQueue.receive    mmsg.go, poll.go   Giant, Unreadable,
//	                                                                  Indescribable
//	      or a stream         streamQueue.receive  stream.go          Giant
//	        find the frames   unframer.take        unframe.go
//	    from a guest's memory vhostQueue.receive   vhostuser.go       Giant
//	      again, polling it   pollers.poll         poller.go
//	    from a tun            tunQueue.receive     tun.go
//	      find the neighbor   tunQueue.packet      tun.go             Short, Unanswered, Full
//	    from other hosts      vxlanQueue.receive   vxlan_receive.go   Stranger, OtherSegment,
//	                                                                  Unreadable
//	      find the frames     vxlanQueue.take      vxlan_receive.go
//	        join segments     vxlanQueue.packet    vxlan_receive.go
//	  handle it               receiver.input       forward.go
//	    check a frame         receiver.accept      forward.go         Down, Looped, BadSource,
//	                                                                  Spoofed, LinkLocal
//	      parse it            frame.parse          frame.go           Short, Giant
//	      copy its rest       receiver.whole       forward.go         Unreadable
//	      find its VLAN       table.classify       vlan.go            VLAN
//	      learn its source    FDB.Learn            fdb.go
//	    pick the targets      receiver.forward     forward.go
//	      detect a loop       receiver.looped      loop.go            Looped
//	      limit storms        bucket.take          storm.go           Broadcasts, Multicasts,
//	                                                                  Unknowns
//	      find its port       FDB.Lookup           fdb.go
//	        check it          receiver.between     forward.go         SamePort, Isolated,
//	                                                                  Down, Looped
//	        want a fast path  receiver.shorten     fastpath_add.go
//	      or flood it         receiver.flood       forward.go         NoPort
//	        check each port   receiver.between     forward.go
//	        add, send         as in flush
//	    send to the targets   receiver.flush       forward.go
//	      add a frame         receiver.add         forward.go         Rated
//	        choose its tag    table.leaving        vlan.go
//	        write the tag     frame.retag          frame.go
//	        segment it        receiver.finish      forward.go         TooBig
//	      send the list       receiver.send        forward.go
//	        to a tap          tapQueue.send        tap.go, ring.go
//	        to a packet wire  packetQueue.send     packet.go
//	          or by a lane    lane.send            lane.go
//	          or, without one oversize.send        oversize.go
//	        to a socket wire  mmsgQueue.send       mmsg.go
//	        to a stream       streamQueue.send     stream.go          Full, Down
//	          or its backlog  streamSender.queue   stream_send.go
//	        to its memory     vhostQueue.send      vhostuser.go       Full, TooBig, Down,
//	                                                                  Unreadable
//	        to a tun          tunQueue.send        tun_send.go
//	          or to it itself stripper.packet      tun_send.go        Advertised, Full, Down,
//	                                                                  Gone, Rejected
//	        to other hosts    vxlanQueue.send      vxlan_send.go      Unreachable, Full, TooBig,
//	          find the host   encapsulator.route   vxlan_send.go      Gone, Rejected
//	          note a result   sender.note          sender.go          Full, Down, Gone,
//	                                                                  Rejected, TooBig,
//	                                                                  Unreadable
//
// receiver.accept also drops with the reasons of package portsec, frame.parse and receiver.finish
// with those of package offload. The kernel counts Overrun of packet and VXLAN wires, and
// Indescribable, and Port.Stats asks it for the numbers. A frame for one port is dropped with the
// reason of between, except VLAN: then it is flooded. A flooded frame is dropped only if it may
// leave by no port at all, and then with NoPort: flood does not report why it left out each port.
//
// Between packet ports, the kernel forwards frames itself once receiver.forward has seen that it
// may (fastpath.go). Those never come to a receiver.
//
// A guest that has arrived by a migration is announced by frames that the switch makes, or is
// given, and that Port.inject handles as if the guest had sent them.
//
// A capture (capture.go) wraps receiver.input and queue.send. It shows an incoming frame with the
// tag with which it came, and an outgoing one with the tag with which it left. Port.refuse reports
// the frames that are refused before that (Rated, TooBig).
//
// # Other hosts
//
// A VXLAN port is one port to many hosts. The FDB has the port behind which an address is; the
// port's own table, also an FDB, has the host, by the VLAN of the tag that the frame has on its
// way. A frame for an address that is not there goes to all hosts. The frames of one flow leave by
// the same of a few sockets, so that they have the same source port. Segments of TCP that arrive
// together become a super-frame (offload.Joiner); a super-frame that leaves is cut, and its
// segments leave in one system call (encapsulator). A frame that came from the port never leaves by
// it.
//
// # The host's IP
//
// A tun port is itself a station: it has an Ethernet address, and answers ARP and neighbor
// discovery for the host's addresses (discovery.go). IP packets for it go to a tun without their
// Ethernet headers. A packet from the tun waits until its destination's Ethernet address is known
// (neighbors.go). The vnet header passes, with its offsets moved by the Ethernet header's length.
//
// # VLAN tags
//
// The kernel puts a tag into the frame when a tap is read (tun_put_user in drivers/net/tun.c). In a
// stream, a datagram, VXLAN and a guest's memory it is in the frame as well. A packet socket
// delivers the outermost tag, of 802.1Q or 802.1ad, beside the frame. By the ring, arrivals.at
// reads it and arrival.copyTo puts it back; otherwise tagOf and mmsgQueue.take do. Both call
// putBack (mmsg.go). Then all tags are in the frame, as they are when it leaves.
//
// frame.parse reads an outermost 802.1Q tag; a frame whose outermost tag is of 802.1ad counts as
// untagged. If the switch filters VLANs, classify finds the frame's VLAN from the tag or the port,
// between compares it with the target's VLANs, leaving decides with which tag the frame leaves, and
// retag writes that tag. A switch that does not filter forwards tags unchanged, and all frames are
// in VLAN 1. TestVLANs has the rules as a table: what arrives with which tags, and where it leaves.
//
// # Around the datapath
//
// Package vport has a port's settings and counters as data, with a table of where each setting
// acts. Package internal/vhostuser is the device of a vhost-user port: the frontend's protocol, and
// the rings in the guest's memory. Package internal/endpoint opens the files of packet ports: the
// socket, the claim of the device, the lane beside it. Package capture is a capture's reader.
// Package control asks a switch that runs in another process, whose side of the socket is package
// control/server.
package vswitch
