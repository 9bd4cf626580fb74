package vswitch_test

import (
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/vport"
)

// BenchmarkLiveOverlay sends TCP between two hosts over a network with an MTU of 1500, in turn by
// two switches that VXLAN joins, by VXLAN devices of the kernel, and by programs that copy packets
// between a tun and a UDP socket, one by one, as flannel's UDP backend does. It reports the medians
// in Mbit/s, and the ratios of the first to the others.
func BenchmarkLiveOverlay(b *testing.B) {
	names := []string{"switch", "kernel", "copying"}
	var ends [][2]*host
	for i, make := range []func(*testing.B, int) [2]*host{switchEnds, kernelEnds, copyingEnds} {
		ends = append(ends, make(b, 100*(i+1)))
	}
	rates := map[string][]float64{}
	for b.Loop() {
		for range 5 {
			for i, e := range ends {
				rates[names[i]] = append(rates[names[i]], tcpRate(b, e[0], e[1])/1e6)
			}
		}
	}
	for _, name := range names {
		b.ReportMetric(median(rates[name]), name)
		if name != "switch" {
			b.ReportMetric(median(rates["switch"])/median(rates[name]), "x-"+name)
		}
	}
	b.ReportMetric(0, "ns/op")
}

// underlayEnds makes two hosts of a network of their own, whose devices there are u0.
func underlayEnds(b *testing.B, n int) (ends [2]*host, at [2]netip.Addr) {
	ends = [2]*host{newHost(b, n, "u0"), newHost(b, n+1, "u0")}
	veth(b, ends[0], ends[1], "u0", 1500)
	for i, h := range ends {
		at[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		h.ip("addr add %s/24 dev u0", at[i])
	}
	return ends, at
}

func switchEnds(b *testing.B, n int) (ends [2]*host) {
	under, at := underlayEnds(b, n+10)
	for i := range ends {
		sw := newSwitch(b)
		ends[i] = tapHost(b, sw, n+i, 1, vport.Config{})
		ends[i].ip("link set eth0 mtu 1450")
		cfg := vport.VXLAN{VNI: 77, Remotes: []netip.Addr{at[1-i]}}
		addPort(b, sw, "up", openVXLAN(b, under[i], cfg), vport.Config{})
	}
	return ends
}

func kernelEnds(b *testing.B, n int) (ends [2]*host) {
	under, at := underlayEnds(b, n)
	for i, h := range under {
		h.device = "vx0"
		h.ip("link add vx0 type vxlan id 77 local %s remote %s dstport 4789", at[i], at[1-i])
		h.up(1450)
	}
	return under
}

func copyingEnds(b *testing.B, n int) (ends [2]*host) {
	under, at := underlayEnds(b, n)
	for i, h := range under {
		h.device = "tun0"
		var tun, socket int
		err := h.ns.Do(func() (err error) {
			if tun, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			ifr, err := unix.NewIfreq("tun0")
			if err != nil {
				return err
			}
			ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, ifr); err != nil {
				return err
			}
			if socket, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			if err := unix.Bind(socket, &unix.SockaddrInet4{Port: 8285, Addr: at[i].As4()}); err != nil {
				return err
			}
			return unix.Connect(socket, &unix.SockaddrInet4{Port: 8285, Addr: at[1-i].As4()})
		})
		if err != nil {
			b.Fatal(err)
		}
		h.up(1472)
		copyPackets(b, tun, socket)
		copyPackets(b, socket, tun)
	}
	return under
}

// copyPackets copies packets until the benchmark ends, each with two system calls.
func copyPackets(b *testing.B, from, to int) {
	done := make(chan struct{})
	stop := [2]int{}
	if err := unix.Pipe2(stop[:], unix.O_CLOEXEC); err != nil {
		b.Fatal(err)
	}
	go func() {
		defer close(done)
		room := make([]byte, 1500)
		for {
			fds := []unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}, {Fd: int32(stop[0]), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR || fds[1].Revents != 0 {
				return
			}
			for {
				n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(from), uintptr(unsafe.Pointer(&room[0])), 1500)
				if errno != 0 {
					break
				}
				_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(to), uintptr(unsafe.Pointer(&room[0])), n)
			}
		}
	}()
	if err := unix.SetNonblock(from, true); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = unix.Close(stop[1])
		<-done
		_ = unix.Close(stop[0])
		_ = unix.Close(from)
	})
}
