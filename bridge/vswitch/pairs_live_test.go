package vswitch_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/vhostuser/frontend"
)

// A corner is a host on one kind of port, with an MTU, and the offloads that its kernel leaves to
// the port.
type corner struct {
	kind     string
	mtu      int
	offloads string
}

func (c corner) String() string { return fmt.Sprintf("%s %d %s", c.kind, c.mtu, c.offloads) }

// corners are all combinations. A tap without vnet headers, a socket and a
// stream have no offloads.
func corners() []corner {
	var all []corner
	for _, mtu := range []int{1500, 9000} {
		for _, kind := range []string{"tap", "queues", "packet", "vhost-user"} {
			for _, offloads := range []string{"all", "checksum", "none"} {
				all = append(all, corner{kind, mtu, offloads})
			}
		}
		all = append(all, corner{"plain tap", mtu, "none"}, corner{"socket", mtu, "none"},
			corner{"stream", mtu, "none"}, corner{"vxlan", mtu, "all"})
	}
	return append(all, corner{"vxlan", 1500, "none"}, corner{"vxlan switch", 1500, "all"},
		corner{"tun", 1500, "all"}, corner{"tun", 9000, "all"})
}

// host makes host n.
func (c corner) host(t *testing.T, sw *vswitch.Switch, n int) *host {
	t.Helper()
	cfg := vport.Config{MTU: c.mtu}
	var h *host
	switch c.kind {
	case "tap":
		h = tapHost(t, sw, n, 1, cfg)
	case "queues":
		h = tapHost(t, sw, n, 3, cfg)
	case "plain tap":
		h = plainTapHost(t, sw, n, cfg)
	case "packet":
		middle := newHost(t, 1000+n, "eth0")
		h = newHost(t, n, "eth0")
		veth(t, h, middle, "eth0", c.mtu)
		addPort(t, sw, fmt.Sprintf("h%d", n), openPacket(t, middle, "eth0"), vport.Config{})
		h.up(c.mtu)
	case "vhost-user":
		h = vhostHost(t, sw, n, cfg, frontend.Config{Ring: 1024})
	case "vxlan":
		h = vxlanHost(t, sw, n, n%2 == 0, cfg)
	case "vxlan switch":
		h = vxlanSwitchHost(t, sw, n, cfg)
	case "tun":
		h = tunHost(t, sw, n, cfg)
	case "socket":
		return socketHost(t, sw, n, cfg)
	case "stream":
		return streamHost(t, sw, n, cfg)
	}
	switch c.offloads {
	case "none":
		h.ethtool(unix.ETHTOOL_STXCSUM, 0)
		fallthrough
	case "checksum":
		h.ethtool(unix.ETHTOOL_STSO, 0)
		h.ethtool(unix.ETHTOOL_SGSO, 0)
	}
	return h
}

// plainTapHost makes host n with a tap without vnet headers.
func plainTapHost(t *testing.T, sw *vswitch.Switch, n int, cfg vport.Config) *host {
	t.Helper()
	h := newHost(t, n, "")
	tap, err := tun.CreateNumbered(h.ns, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	h.device = tap.Name
	w, err := vswitch.OpenTap(tap.Queues()...)
	if err != nil {
		t.Fatal(err)
	}
	addPort(t, sw, fmt.Sprintf("h%d", n), w, cfg)
	h.up(cfg.MTU)
	return h
}

// ethtool sets a value of the host's device (struct ethtool_value of include/uapi/linux/ethtool.h).
func (h *host) ethtool(cmd, value uint32) {
	h.t.Helper()
	if err := h.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		v := [2]uint32{cmd, value}
		req := struct { // struct ifreq of include/uapi/linux/if.h
			name [unix.IFNAMSIZ]byte
			data *[2]uint32
			_    [16]byte
		}{data: &v}
		copy(req.name[:], h.device)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		runtime.KeepAlive(&req)
		if errno != 0 {
			return errno
		}
		return nil
	}); err != nil {
		h.t.Fatalf("ethtool %#x of %s: %v", cmd, h.device, err)
	}
}

// seen counts the frames that arrived on a port with offloads that its host's kernel leaves to
// others.
type seen struct{ frames, partial, super int }

// watch captures the incoming frames of all corners' ports, until stop is called.
func watch(t *testing.T, sw *vswitch.Switch, ports int) (stop func() []seen) {
	t.Helper()
	cfg := capture.Config{In: true, Snaplen: 64}
	for n := range ports {
		cfg.Ports = append(cfg.Ports, fmt.Sprintf("h%d", n))
	}
	r, err := startCapture(sw, cfg)
	if err != nil {
		t.Fatal(err)
	}
	all, done := make([]seen, ports), make(chan struct{})
	go func() {
		defer close(done)
		for f, err := r.Next(); err == nil; f, err = r.Next() {
			s := &all[f.Port]
			s.frames++
			if f.Vnet.Flags&offload.NeedsCsum != 0 {
				s.partial++
			}
			if f.Vnet.GSOType != offload.GSONone {
				s.super++
			}
		}
	}()
	return func() []seen {
		_ = r.Stop()
		<-done
		_ = r.Close()
		return all
	}
}

// TestLivePairs sends verified TCP, over IPv4 and IPv6, from every kind of port to every other,
// with every mix of offloads and MTUs.
func TestLivePairs(t *testing.T) {
	sw := newSwitch(t)
	var hosts []*host
	for n, c := range corners() {
		hosts = append(hosts, c.host(t, sw, n))
	}
	stop := watch(t, sw, len(hosts))
	for i, from := range corners() {
		for j, to := range corners() {
			if i == j {
				continue
			}
			for _, addr := range []string{hosts[j].v4 + ":0", "[" + hosts[j].v6 + "]:0"} {
				if err := tryTCP(t, hosts[i], hosts[j], addr, 100_000, 30*time.Second); err != nil {
					t.Errorf("%v to %v: %v", from, to, err)
				}
			}
		}
	}
	for n, s := range stop() {
		c := corners()[n]
		if s.frames < 100 || (s.super > 0) != (c.offloads == "all") || (s.partial > 0) != (c.offloads != "none") {
			t.Errorf("%v did not send the intended mix of offloads: %+v", c, s)
		}
	}
}
