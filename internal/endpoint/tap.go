package endpoint

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
)

// SetTap sets a queue up for frames with as many offloads as the kernel supports, and returns the
// device's name.
func SetTap(fd int) (device string, limits offload.Limits, err error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", limits, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", limits, fmt.Errorf("TUNGETIFF: %w (want a queue of a tap)", err)
	}
	device = ifr.Name()
	switch flags := ifr.Uint16(); {
	case flags&unix.IFF_TAP == 0 || flags&unix.IFF_NO_PI == 0:
		return device, limits, fmt.Errorf("%s has flags %#x: want IFF_TAP and IFF_NO_PI", device, flags)
	case flags&unix.IFF_VNET_HDR == 0:
		return device, limits, nil
	}
	limits, err = setOffloads(fd, true)
	if err != nil {
		err = fmt.Errorf("set the vnet header of %s: %w", device, err)
	}
	return device, limits, err
}

// SetTun is SetTap for the queue of a tun, which must have a vnet header. That has 10 bytes.
func SetTun(fd int) (device string, limits offload.Limits, err error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", limits, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", limits, fmt.Errorf("TUNGETIFF: %w (want the queue of a tun)", err)
	}
	const want = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	device = ifr.Name()
	if flags := ifr.Uint16(); flags&want != want {
		return device, limits, fmt.Errorf("%s has flags %#x: want IFF_TUN, IFF_NO_PI and IFF_VNET_HDR", device, flags)
	}
	if limits, err = setOffloads(fd, false); err != nil {
		err = fmt.Errorf("set the vnet header of %s: %w", device, err)
	}
	return device, limits, err
}

// Constants of include/uapi/linux/if_tun.h since Linux 6.17.
const (
	tunTunnels    = 0x80  // TUN_F_UDP_TUNNEL_GSO
	tunTunnelCsum = 0x100 // TUN_F_UDP_TUNNEL_GSO_CSUM
)

// setOffloads requests as many offloads as the kernel supports, those of tunnels if wanted. The
// kernel refuses those that it does not know.
func setOffloads(fd int, tunnels bool) (offload.Limits, error) {
	const (
		tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		uso = tso | unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	limits := offload.Limits{
		CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, Tunnels: true,
		VnetHdr: offload.TunnelHeaderLen,
	}
	set := func(offloads int) error {
		return errors.Join(
			unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, limits.VnetHdr),
			unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1),
			unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads))
	}
	err := error(unix.EINVAL)
	if tunnels {
		err = set(uso | tunTunnels | tunTunnelCsum)
	}
	if errors.Is(err, unix.EINVAL) {
		limits.Tunnels, limits.VnetHdr = false, offload.HeaderLen
		err = set(uso)
	}
	if errors.Is(err, unix.EINVAL) {
		limits.USO = false
		err = set(tso)
	}
	return limits, err
}
