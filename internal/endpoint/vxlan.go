package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/sockopt"
)

// The files of a VXLAN port: the socket that receives, the one by which the switch asks for MTUs,
// and those that send. A flow is always sent by the same one, so that the network between the hosts
// can tell flows apart by their source ports (RFC 7348, section 5).
const (
	VXLANSenders   = 8
	VXLANFileCount = 2 + VXLANSenders
)

// vxlanBuffer is the size in bytes of the buffers of a VXLAN port's sockets, for bursts.
const vxlanBuffer = 8 << 20

// VXLANFiles opens the sockets of a VXLAN port in a network namespace, which needs no privilege.
// The caller closes them.
func VXLANFiles(ns *netns.NS, cfg vport.VXLAN) (files []*os.File, err error) {
	for n := range VXLANFileCount {
		var f *os.File
		if err := ns.Do(func() (err error) { f, err = vxlanFile(cfg, n); return err }); err != nil {
			for _, f := range files {
				err = errors.Join(err, f.Close())
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// vxlanFile opens socket n.
func vxlanFile(cfg vport.VXLAN, n int) (*os.File, error) {
	domain := unix.AF_INET
	if cfg.Remotes[0].Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("UDP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("vxlan %d, socket %d", cfg.VNI, n))
	port := 0
	if n == 0 {
		port = cfg.UDPPort()
	}
	err = errors.Join(fragment(fd, domain), setVXLAN(fd, n))
	if err == nil {
		err = explainBind(unix.Bind(fd, Sockaddr(cfg.Local, domain == unix.AF_INET6, port)), cfg.Local, port)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// fragment lets the kernel and routers fragment what the socket sends, as they do what a VXLAN
// device sends ("df unset" of ip-link(8)). An IPv6 socket is for IPv6 alone.
func fragment(fd, domain int) error {
	if domain == unix.AF_INET {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT))
}

// setVXLAN has socket n receive joined datagrams (UDP_GRO of udp(7)), or nothing if it is not the
// first one.
func setVXLAN(fd, n int) error {
	if n != 0 {
		nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(nothing)), Filter: &nothing[0]}); err != nil {
			return fmt.Errorf("filter: %w", err)
		}
		return sockopt.RaiseBuffers(fd, vxlanBuffer)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1); err != nil {
		return fmt.Errorf("UDP_GRO: %w (want Linux 5.0 or later)", err)
	}
	return sockopt.RaiseBuffers(fd, vxlanBuffer)
}

// Sockaddr returns the address of a UDP socket; one that is not valid means all of this host.
func Sockaddr(a netip.Addr, v6 bool, port int) unix.Sockaddr {
	if v6 {
		s := &unix.SockaddrInet6{Port: port}
		if a.IsValid() {
			s.Addr = a.As16()
		}
		return s
	}
	s := &unix.SockaddrInet4{Port: port}
	if a.IsValid() {
		s.Addr = a.As4()
	}
	return s
}

func explainBind(err error, local netip.Addr, port int) error {
	at := "UDP port"
	if local.IsValid() {
		at = local.String() + ", UDP port"
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%s %d: %w (another switch or a VXLAN device has it: use another local= or port=)",
			at, port, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("local address %s: this host does not have it: %w", local, err)
	case err != nil:
		return fmt.Errorf("bind to %s %d: %w", at, port, err)
	}
	return nil
}

// CheckVXLAN returns an error unless an fd is a UDP socket of that IP version.
func CheckVXLAN(fd int, v6 bool) error {
	domain := unix.AF_INET
	if v6 {
		domain = unix.AF_INET6
	}
	const want = "a UDP socket of the remote hosts' IP version"
	if err := sockopt.CheckKind(fd, domain, unix.SOCK_DGRAM, want); err != nil {
		return err
	}
	p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err == nil && p != unix.IPPROTO_UDP {
		err = fmt.Errorf("protocol %d: want %s", p, want)
	}
	return err
}

// MTUTo returns the MTU in bytes of the way to a host, as the kernel knows it, by a UDP socket that
// is for nothing else. ok is false if there is no way now.
func MTUTo(fd int, host netip.Addr) (mtu int, ok bool) {
	const discard = 9                                // no packet is sent
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC} // else the next way begins at the last one's source
	_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
	if unix.Connect(fd, Sockaddr(host, host.Is6(), discard)) != nil {
		return 0, false
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if host.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	return mtu, err == nil && mtu > 0
}
