package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// FollowFile opens a netlink socket for a Follower, in the netns of its link. A process that
// receives the file needs no privilege to follow the link. The caller owns the file. With
// CAP_NET_BROADCAST, the socket also receives the events of all netns for which ns has an id, and
// so those of a link that moves there (NETLINK_LISTEN_ALL_NSID in netlink(7)).
func FollowFile(ns *netns.NS) (*os.File, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1)
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)})
		if err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink events: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink socket"), nil
}

// A LinkState is the state of a followed link.
type LinkState struct {
	Index   int
	Name    string
	MTU     int // bytes
	MAC     net.HardwareAddr
	Up      bool
	Carrier bool
	// Lost says that the kernel no longer reports the link's changes, such as after a move to a
	// netns for which the first one has no id. The other fields are as last reported.
	Lost bool
}

// A Follower reports the state of one link and its changes, also after the link was renamed or
// moved to another netns. Its methods, except Close, are for one goroutine at a time.
type Follower struct {
	file   *os.File
	conn   syscall.RawConn
	buffer []byte
	oob    []byte

	state LinkState
	nsid  int  // of the link's netns
	moved bool // to a netns whose id is not known yet
}

// Follow takes ownership of a file from FollowFile and finds the link of that name in the file's
// netns. If there is none, the error matches fs.ErrNotExist with errors.Is.
func Follow(f *os.File, name string) (*Follower, error) {
	w := &Follower{file: f, buffer: make([]byte, maxMessage), oob: make([]byte, 64), nsid: OwnNS}
	err := w.begin(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("follow %s: %w", name, err), f.Close())
	}
	return w, nil
}

func (w *Follower) begin(name string) (err error) {
	if w.conn, err = w.file.SyscallConn(); err != nil {
		return err
	}
	if err := w.file.SetReadDeadline(time.Now().Add(time.Duration(timeout.Sec) * time.Second)); err != nil {
		return err
	}
	if err := w.ask(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))); err != nil {
		return err
	}
	for w.state.Index == 0 {
		messages, nsid, err := w.receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // events may overrun the socket before there is a filter
			return late(err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.NLMSG_ERROR {
				return notExist(answerError(m))
			}
			if e, ok := parseEvent(m); ok && !e.Gone && nsid == OwnNS && e.Name == name {
				w.set(e.Link)
			}
		}
	}
	if err := w.filter(); err != nil {
		return err
	}
	return w.file.SetReadDeadline(time.Time{})
}

// Followed is what a Follower knows of its link, by which another one can go on with the same file.
type Followed struct {
	State LinkState `json:"state"`
	NSID  int       `json:"nsid"`            // of the link's netns
	Moved bool      `json:"moved,omitempty"` // to a netns whose id is not known yet
}

// Followed returns what it knows. Call it when Next has returned for the last time.
func (w *Follower) Followed() Followed { return Followed{w.state, w.nsid, w.moved} }

// FollowOn takes ownership of a file that another Follower has used, and goes on after that one's
// last event.
func FollowOn(f *os.File, at Followed) (*Follower, error) {
	w := &Follower{
		file: f, buffer: make([]byte, maxMessage), oob: make([]byte, 64),
		state: at.State, nsid: at.NSID, moved: at.Moved,
	}
	var err error
	if len(w.state.Name) >= unix.IFNAMSIZ {
		err = fmt.Errorf("the name %.40q is too long", w.state.Name)
	}
	if err == nil {
		w.conn, err = f.SyscallConn()
	}
	if err == nil {
		err = w.filter()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("follow %.40s: %w", at.State.Name, err), f.Close())
	}
	return w, nil
}

// State returns the state of the link when Follow or Next returned.
func (w *Follower) State() LinkState { return w.state }

// Close closes the file. It makes a Next that waits return.
func (w *Follower) Close() error { return w.file.Close() }

// Next waits until the link changes, and returns its new state. After the link was removed, Next
// waits until Close. The error then matches fs.ErrClosed or os.ErrClosed with errors.Is.
func (w *Follower) Next() (LinkState, error) {
	for was := w.state; ; {
		messages, nsid, err := w.receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			w.overrun()
		case err != nil:
			return w.state, err
		}
		for _, m := range messages {
			if e, ok := parseEvent(m); ok {
				w.take(e, m, nsid)
			}
		}
		if !same(w.state, was) {
			return w.state, nil
		}
	}
}

func same(a, b LinkState) bool {
	return a.Index == b.Index && a.Name == b.Name && a.MTU == b.MTU && a.Up == b.Up &&
		a.Carrier == b.Carrier && a.Lost == b.Lost && string(a.MAC) == string(b.MAC)
}

// take applies an event if it is about the link. If a link moves, the kernel reports that it is
// gone from its netns, with the id of the new one. The link is then down, and new in the other
// netns (dev_change_net_namespace in net/core/dev.c).
func (w *Follower) take(e Event, m syscall.NetlinkMessage, nsid int) {
	if e.Index != w.state.Index {
		return
	}
	switch {
	case w.moved && !e.Gone && e.Name == w.state.Name && string(e.MAC) == string(w.state.MAC):
		w.nsid, w.moved = nsid, false
		w.set(e.Link)
	case nsid != w.nsid || w.moved:
	case !e.Gone:
		renamed := e.Name != w.state.Name
		w.set(e.Link)
		if renamed {
			_ = w.filter() // it succeeded before
		}
	default:
		w.move(m.Data)
	}
}

func (w *Follower) move(msg []byte) {
	if len(msg) < unix.SizeofIfInfomsg {
		return
	}
	each(msg[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_NEW_NETNSID:
			w.moved = true
			w.state.Up, w.state.Carrier, w.state.Lost = false, false, true
		case unix.IFLA_NEW_IFINDEX:
			w.state.Index = int(u32(v))
		}
	})
	_ = w.filter()
}

// overrun requests the state of the link, whose events may be among the lost ones. It can do so
// only in the socket's own netns.
func (w *Follower) overrun() {
	if w.nsid != OwnNS || w.moved || w.ask(nil) != nil {
		w.state.Lost = true
	}
}

func (w *Follower) set(l *Link) {
	w.state = LinkState{Index: l.Index, Name: l.Name, MTU: l.MTU, MAC: l.MAC, Up: l.Up, Carrier: l.Carrier}
}

// ask requests the link with that attribute or, if it is nil, the one with the known index. The
// kernel answers with a message like an event.
func (w *Follower) ask(attr *nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(w.state.Index)
	req.AddData(msg)
	if attr != nil {
		req.AddData(attr)
	}
	var inner error
	err := w.conn.Control(func(fd uintptr) {
		inner = unix.Sendto(int(fd), req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	return errors.Join(err, inner)
}

// receive waits for a datagram from the kernel, and returns the id of the netns that it is about.
func (w *Follower) receive() (messages []syscall.NetlinkMessage, nsid int, err error) {
	var n, oobn int
	var from unix.Sockaddr
	waitErr := w.conn.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, from, err = unix.Recvmsg(int(fd), w.buffer, w.oob, 0)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if waitErr != nil {
		return nil, OwnNS, waitErr
	}
	if err != nil {
		return nil, OwnNS, fmt.Errorf("netlink events: %w", err)
	}
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != nl.PidKernel {
		return nil, OwnNS, nil
	}
	messages, err = syscall.ParseNetlinkMessage(w.buffer[:n])
	return messages, nsidOf(w.oob[:oobn]), err
}

// nsidOf returns the id that accompanies an event of another netns (netlink_cmsg_listen_all_nsid in
// net/netlink/af_netlink.c).
func nsidOf(oob []byte) int {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return OwnNS
	}
	for _, c := range controls {
		if c.Header.Level == unix.SOL_NETLINK && c.Header.Type == unix.NETLINK_LISTEN_ALL_NSID {
			return int(int32(u32(c.Data)))
		}
	}
	return OwnNS
}

// filter makes the kernel drop the messages of other links (SO_ATTACH_FILTER in socket(7)): on a
// host with a thousand links, each change would otherwise wake a thousand followers. If a move
// gives the link another index, its first event there still has the old name. BPF loads words in
// big endian.
func (w *Follower) filter() error {
	load := func(at int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(at)}
	}
	unless := func(b []byte, skip int) unix.SockFilter { // unless the word is b, skip that many instructions
		return unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(skip),
			K: binary.BigEndian.Uint32(b),
		}
	}
	pass := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: maxMessage}

	const ifinfo = unix.SizeofNlMsghdr                                                     // struct ifinfomsg
	program := []unix.SockFilter{load(ifinfo + 4), unless(native(w.state.Index), 1), pass} // ifi_index

	name := append([]byte(w.state.Name), make([]byte, unix.IFNAMSIZ)...)[:(len(w.state.Name)+4)&^3]
	const ifname = ifinfo + unix.SizeofIfInfomsg + unix.SizeofRtAttr // the first attribute (rtnl_fill_ifinfo)
	for i := 0; i < len(name); i += 4 {
		rest := (len(name)-i)/4*2 - 1
		program = append(program, load(ifname+i), unless(name[i:], rest))
	}
	program = append(program, pass, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
	var inner error
	err := w.conn.Control(func(fd uintptr) {
		inner = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	return errors.Join(err, inner)
}

func native(v int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(v)) }
