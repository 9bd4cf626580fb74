// Package endpoint opens and checks the files of a switch's ports: the packet socket and the claim
// of a device, the socketpair to a guest, the tap beside a veth device. Opening them may need
// privilege. The switch gets the open files, from its own process or over its control socket, and
// needs none (package vswitch).
//
// It is for vmnet's own programs. Package vswitch offers the same to others, without the types of
// internal packages.
package endpoint

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/fastpath"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/sockopt"
)

// PacketFileCount is the number of files that a packet port's wire needs. With a fast path there
// are as many more as FastFileCount says.
const (
	PacketFileCount = 4
	FastFileCount   = fastpath.FileCount
)

// PacketFiles opens the files of a packet port, for which it needs CAP_NET_RAW and CAP_NET_ADMIN in
// ns. It claims the device, and fails if the kernel does not support that or another switch has
// claimed the device. The files are a packet socket that receives from the device at once, the
// netlink socket that keeps the claim, the netlink socket by which the wire follows the device, and
// a file for frames that the packet socket cannot send: a lane's tap or another packet socket. The
// caller closes them.
func PacketFiles(ns *netns.NS, device string) (files []*os.File, err error) {
	files, _, err = FastPacketFiles(ns, device, false)
	return files, err
}

// FastPacketFiles returns the files of PacketFiles and with fast, if the kernel and the privileges
// of this process permit it, those of a fast path (package fastpath). Otherwise slow says why not.
func FastPacketFiles(ns *netns.NS, device string, fast bool) (files []*os.File, slow, err error) {
	defer func() {
		if err != nil {
			fdpass.CloseAll(files)
			files, err = nil, fmt.Errorf("open packet socket on %s: %w", device, err)
		}
	}()
	socket, d, err := packetSocket(ns, device)
	if err != nil {
		return nil, nil, err
	}
	files = append(files, socket)
	claim, err := claimDevice(ns, d.Name)
	if err != nil {
		return files, nil, err
	}
	files = append(files, claim)
	link, err := rtnl.FollowFile(ns)
	if err != nil {
		return files, nil, err
	}
	files = append(files, link)
	second, leftOut, err := secondFile(ns, socket, claim, d)
	if err != nil {
		return files, nil, err
	}
	files = append(files, second)
	if fast {
		var more []*os.File
		more, slow = fastpath.Open(ns, d.Index, socket, leftOut)
		files = append(files, more...)
	}
	// Receive only now that the stack no longer receives.
	return files, slow, bindPacket(int(socket.Fd()), d)
}

// secondFile opens the file for frames that the packet socket cannot send: a lane to a veth device,
// or a socket to any other device, which needs no lane. It returns the IP protocols whose packets
// come by the lane.
func secondFile(ns *netns.NS, socket, claim *os.File, d Device) (f *os.File, leftOut []byte, err error) {
	c, err := rtnl.Open(ns)
	if err != nil {
		return nil, nil, err
	}
	link, err := c.LinkByIndex(d.Index)
	c.Close()
	if err != nil {
		return nil, nil, err
	}
	if link.Kind == "veth" {
		if f, leftOut, err := openLane(ns, socket, claim, d); f != nil || err != nil {
			return f, leftOut, err
		}
	}
	f, err = oversizeSocket(ns, d)
	return f, nil, err
}

// A Device is the device of a packet socket.
type Device struct {
	Index int
	Name  string // its own name: a claim cannot use an altname
}

// packetSocket opens a packet socket that does not receive yet, and finds the device with that name
// or altname.
func packetSocket(ns *netns.NS, device string) (*os.File, Device, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		// 0: it receives no protocol until it is bound.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	var d Device
	if err != nil {
		return nil, d, fmt.Errorf("%w (needs CAP_NET_RAW)", err)
	}
	index, err := indexOf(fd, device)
	if err == nil {
		d, err = deviceOf(fd, index)
	}
	if err == nil {
		err = setPacket(fd)
	}
	if err != nil {
		return nil, d, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet socket on "+d.Name), d, nil
}

// CheckPacket checks that a socket is like those that PacketFiles makes, and returns its device.
func CheckPacket(fd int) (d Device, err error) {
	if err := sockopt.CheckKind(fd, unix.AF_PACKET, unix.SOCK_RAW, "a raw packet socket"); err != nil {
		return d, err
	}
	for _, o := range packetOptions {
		if on, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, o.opt); err != nil || on == 0 {
			return d, fmt.Errorf("%s is not set (%w)", o.name, errors.Join(unix.EINVAL, err))
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return d, err
	}
	ll, ok := name.(*unix.SockaddrLinklayer)
	switch {
	case ok && ll.Ifindex < 0:
		return d, fmt.Errorf("the device has been removed: %w", unix.ENODEV)
	case !ok || ll.Ifindex == 0 || ll.Protocol != allProtocols:
		return d, errors.New("it is not bound to a device and all protocols")
	}
	return deviceOf(fd, ll.Ifindex)
}

// deviceOf returns the device with that index. It fails unless it is an Ethernet device
// (ARPHRD_ETHER in include/uapi/linux/if_arp.h), which excludes tunnels and the loopback device.
// The host needs the latter itself.
func deviceOf(fd, index int) (Device, error) {
	d := Device{Index: index}
	var err error
	if d.Name, err = nameOf(fd, index); err != nil {
		return d, err
	}
	ifr, err := unix.NewIfreq(d.Name)
	if err != nil {
		return d, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, ifr); err != nil {
		return d, fmt.Errorf("SIOCGIFHWADDR: %w", err)
	}
	if kind := ifr.Uint16(); kind != unix.ARPHRD_ETHER { // sa_family of ifr_hwaddr, netdevice(7)
		return d, fmt.Errorf("%w device: %s is not an Ethernet device, but one of type %d",
			brport.ErrInvalid, d.Name, kind)
	}
	return d, nil
}

// nameOf returns the name of the device with that index in the socket's netns (netdevice(7)).
func nameOf(fd, index int) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	ifr.SetUint32(uint32(index))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr); err != nil {
		return "", fmt.Errorf("SIOCGIFNAME: %w", err)
	}
	return ifr.Name(), nil
}

func indexOf(fd int, device string) (int, error) {
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

var packetOptions = []struct {
	name string
	opt  int
}{
	{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR},
	{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING}, // Linux 4.20
	{"PACKET_AUXDATA", unix.PACKET_AUXDATA},
}

// packetBuffer limits what the kernel queues for the socket, in bytes that include the kernel's
// overhead for each frame.
const packetBuffer = 8 << 20

func setPacket(fd int) error {
	if cpu.IsBigEndian { // vio_le of net/packet/af_packet.c
		return fmt.Errorf(
			"%w: a packet socket of a big-endian machine has vnet headers in another byte order than taps (use a tap)",
			brport.ErrNotSupported)
	}
	for _, o := range packetOptions {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o.opt, 1); err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
	}
	return sockopt.RaiseBuffers(fd, packetBuffer)
}

// allProtocols is ETH_P_ALL in network byte order.
const allProtocols = (unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) & 0xffff

func bindPacket(fd int, d Device) error {
	promisc := unix.PacketMreq{Ifindex: int32(d.Index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &promisc); err != nil {
		return fmt.Errorf("make the device promiscuous: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: d.Index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return d.Check(fd)
}

// Check returns an error if the device has been renamed or is gone. Since Linux 6.16 a claim
// follows the name, not the device. After a rename, the host's stack receives the frames, and the
// next device of that name is claimed (nf_tables_netdev_event in net/netfilter/nf_tables_api.c).
func (d Device) Check(fd int) error {
	name, err := nameOf(fd, d.Index)
	switch {
	case err != nil:
		return err
	case name != d.Name:
		return fmt.Errorf(
			"the device %s was renamed to %s, so the host receives its frames "+
				"(remove the port, and add it with the new name)",
			d.Name, name)
	}
	return nil
}
