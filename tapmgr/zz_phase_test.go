package tapmgr

import (
	"runtime"
	"testing"
	"time"
	"fmt"
	"sort"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"vmnet/internal/tun"
)

func BenchmarkPhases(b *testing.B) {
	runtime.LockOSThread()
	for _, n := range []int{100, 1000} {
	s := newSite(b)
	ph := map[string][]time.Duration{}
	for i := range n {
		s.enter()
		spec := s.spec(i)
		a := plannedAttachment(nil, s.br, spec)
		name := rtnlAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.name))
		t := time.Now()
		lap := func(k string) { ph[k] = append(ph[k], time.Since(t)); t = time.Now() }
		fd, _ := unix.Open(tun.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
		s.ends = append(s.ends, func() { unix.Close(fd) })
		lap("1 open")
		ifr, _ := unix.NewIfreq(a.name)
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil { b.Fatal(err) }
		lap("2 tunsetiff")
		request(s.sock, linkMessage(unix.RTM_SETLINK, 0, 0, name, rtnlAttr(unix.IFLA_IFALIAS, []byte(a.alias))))
		lap("3 alias")
		request(s.sock, linkMessage(unix.RTM_SETLINK, 0, 0, name, rtnlAttr(unix.IFLA_ADDRESS, hostMAC(spec.MAC))))
		lap("4 mac")
		request(s.sock, linkMessage(unix.RTM_SETLINK, 0, 0, name, rtnlAttr(unix.IFLA_MTU, nl.Uint32Attr(1500))))
		lap("5 mtu")
		request(s.sock, linkMessage(unix.RTM_SETLINK, 0, 0, name, noAutoconf()))
		lap("6 genmode")
		request(s.sock, linkMessage(unix.RTM_SETLINK, 0, 0, name, rtnlAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(s.br.Index)))))
		lap("7 master")
		request(s.sock, linkMessage(unix.RTM_SETLINK, 0, unix.IFF_UP, name))
		lap("8 up")
	}
	var keys []string
	for k := range ph { keys = append(keys, k) }
	sort.Strings(keys)
	for _, k := range keys { sort.Slice(ph[k], func(i, j int) bool { return ph[k][i] < ph[k][j] }); fmt.Println(n, k, ph[k][len(ph[k])/2]) }
	s.end()
	}
}
