package main

import (
	"context"
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/network/usernet"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

// TestLiveUserNetworkSmallMTU: guests with an MTU of 1500 bytes, on a socket and with shared
// memory, get what is sent to them, in few and long segments as far as the switch, and packets
// other than TCP's cut to that MTU.
func TestLiveUserNetworkSmallMTU(t *testing.T) {
	h := newUserHost(t)
	h.ok(append(createLab, "--mtu", "1500"))
	plain, plainName := nobodys(t)
	sharedName := uniqueVM()
	c := testvm.Config{Name: sharedName, MemoryMiB: 128, BootTimeout: 5 * time.Minute, ExtraArgs: []string{
		"-object", "memory-backend-memfd,id=mem,size=128M", "-machine", "memory-backend=mem",
	}}
	shared := testvm.StartT(t, c.OwnedBy(t, nobody))
	h.fails([]string{"attach", "--vm", plainName, "--network", "lab", "--via", "vhost-user"}, "is not shared")
	h.ok([]string{"attach", "--vm", plainName, "--network", "lab"}, "socket "+plainName)
	h.ok([]string{"attach", "--vm", sharedName, "--network", "lab", "--via", "vhost-user"}, "vhost-user "+sharedName)
	h.ok([]string{"check"}, "no difference")
	for _, g := range []*testvm.VM{plain, shared} {
		h.lease(g, "g")
		h.says(g, "1500", "cat", "/sys/class/net/eth0/mtu")
		for _, world := range []string{world4, world6} {
			before := h.fromGateway()
			h.downloads(g, world)
			// 4 MiB are 2873 segments that fill the MTU, with IPv4.
			if n := h.fromGateway() - before; n > 1500 {
				t.Errorf("%s: %d frames come from the namespace", world, n)
			}
		}
		for _, router := range []string{"10.66.0.1", "fd66:1:2:3::1"} {
			h.says(g, "2 packets received", "ping", "-s", "3000", "-c", "2", "-w", "20", router)
		}
	}
	h.longDatagrams(plain, plainName)
	h.ok([]string{"network", "delete", "lab", "--force"})
}

// longDatagrams sends datagrams that are longer than the guest's MTU. A forward leads them to the
// guest, and the answers back. The world gets none from the guest: pasta takes no fragments.
func (h *userHost) longDatagrams(g *testvm.VM, name string) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), 2*patience)
	defer cancel()
	if _, err := g.Guest.UDPServe(ctx, "0.0.0.0:9"); err != nil {
		h.Fatal(err)
	}
	h.ok([]string{"forward", "add", "lab", "udp:9009", strings.ToLower(name) + ":9"}, "added")
	const long, short, count = 4000, 1400, 5
	err := h.ns.Do(func() error {
		_, err := traffic.SendUDP(ctx, userHost4+":9009", count, long)
		return err
	})
	if err != nil {
		h.Errorf("by a forward: %v", err)
	}
	var s *traffic.Server
	if err := h.world.Do(func() (err error) { s, err = traffic.ServeUDP(world4 + ":9"); return err }); err != nil {
		h.Fatal(err)
	}
	defer s.Close()
	if _, err := g.Guest.UDPSend(ctx, s.Addr, count, short); err != nil {
		h.Errorf("short ones to the world: %v", err)
	}
	if got, err := g.Guest.UDPSend(ctx, s.Addr, count, long); err == nil {
		h.Errorf("pasta takes fragments now, as vmnet-network(8) should say: %+v", got)
	}
}

// fromGateway returns how many frames the namespace of lab has sent to its switch.
func (h *userHost) fromGateway() uint64 {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), patience)
	defer cancel()
	c, err := control.Dial(ctx, h.home+"/run/vmnet/switch/lab/socket")
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	ports, err := c.Ports(ctx)
	for _, p := range ports {
		if p.Name == usernet.Gateway {
			return p.Stats.Total().RxFrames
		}
	}
	h.Fatalf("no gateway: %+v, %v", ports, err)
	return 0
}

// downloads has a guest receive from an address of the world, and compares what has arrived.
func (h *userHost) downloads(g *testvm.VM, world string) {
	h.Helper()
	data := make([]byte, 4<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	var ln net.Listener
	err := h.world.Do(func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(world, "0"))
		return err
	})
	if err != nil {
		h.Fatal(err)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c, err := ln.Accept()
		if err == nil {
			_, _ = c.Write(data)
			_, _ = c.Read(make([]byte, 1)) // until the guest has all
			_ = c.Close()
		}
	}()
	defer func() {
		_ = ln.Close()
		<-sent
	}()
	port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	h.says(g, fmt.Sprintf("%x", md5.Sum(data)), "sh", "-c", "nc "+world+" "+port+
		" -e sh -c 'dd bs=64k iflag=fullblock count=64 2>/dev/null | md5sum >/sum'; cat /sum")
}
