package dnsrelay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// port is that of DNS.
const port = 53

// loopback is the one interface by which questions come: the network's server is in the namespace
// of the sockets, and no guest is, whatever net.ipv4.conf.all.route_localnet says there.
const loopback = "lo"

// Open opens, for each of the addresses, a UDP socket and a TCP listener in ns. A process that has
// inherited them runs Main. The caller closes the files, which with an error are those of the other
// addresses: ::1 is not available where IPv6 is disabled.
func Open(ns *netns.NS, addrs []netip.Addr) (files []*os.File, err error) {
	err = ns.Do(func() error {
		var errs []error
		for _, a := range addrs {
			both, err := open(netip.AddrPortFrom(a, port).String())
			files = append(files, both...)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return files, err
}

// open opens both sockets of an address, or none.
func open(address string) (both []*os.File, err error) {
	config := net.ListenConfig{Control: toLoopback}
	datagrams, err := config.ListenPacket(context.Background(), "udp", address)
	if err != nil {
		return nil, err
	}
	defer datagrams.Close()
	connections, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	defer connections.Close()
	first, err := datagrams.(*net.UDPConn).File()
	if err != nil {
		return nil, err
	}
	second, err := connections.(*net.TCPListener).File()
	if err != nil {
		return nil, errors.Join(err, first.Close())
	}
	return []*os.File{first, second}, nil
}

// toLoopback keeps a socket to the loopback interface of its namespace (socket(7)).
func toLoopback(_, _ string, c syscall.RawConn) (err error) {
	controlErr := c.Control(func(fd uintptr) {
		err = os.NewSyscallError("SO_BINDTODEVICE", unix.BindToDevice(int(fd), loopback))
	})
	return errors.Join(err, controlErr)
}

// firstFile is the descriptor of the first of the files that Main inherits (os/exec, ExtraFiles).
const firstFile = 3

// inherited takes over the files that Open has opened.
func inherited(count int) (datagrams []net.PacketConn, connections []net.Listener, err error) {
	for i := range count {
		f := os.NewFile(uintptr(firstFile+i), "socket "+strconv.Itoa(i))
		var one error
		if i%2 == 0 {
			var c net.PacketConn
			c, one = net.FilePacketConn(f)
			datagrams = append(datagrams, c)
		} else {
			var l net.Listener
			l, one = net.FileListener(f)
			connections = append(connections, l)
		}
		if err = errors.Join(one, f.Close()); err != nil {
			return nil, nil, fmt.Errorf("descriptor %d: %w", firstFile+i, err)
		}
	}
	return datagrams, connections, nil
}
