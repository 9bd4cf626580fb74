package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

// TestLiveVhostUserMachines has guests of other machines than TestLiveVhostUserGuest exchange
// frames with a station on a tap: q35, and microvm, whose NIC is on no PCI bus.
func TestLiveVhostUserMachines(t *testing.T) {
	testvm.Require(t)
	for machine, device := range map[string]string{
		"q35": "virtio-net-pci,vectors=0,", "microvm": "virtio-net-device,",
	} {
		t.Run(machine, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "frontend.sock")
			ns := nstest.New(t)
			station(t, ns.Do, nstest.Handle(t, ns), "10.7.0.1/24")
			const mac = "52:54:00:76:6d:01"
			sw := runSwitch(t, ns, nil, "--tap", "tap0", "--vhost-user", path+",client,name=guest")
			var args []string
			if machine == "microvm" {
				machine += ",pcie=on"                                       // for the agent's device
				args = append(args, "tsc_early_khz=2000000", "lpj=4000000") // without KVM it has no other clock
			}
			vm := testvm.StartT(t, testvm.Config{
				Name: uniqueVM(), MemoryMiB: 128, NoWait: true, Modules: []string{"virtio_mmio"}, KernelArgs: args,
				ExtraArgs: []string{
					"-object", "memory-backend-memfd,id=mem,size=128M", "-machine", machine + ",memory-backend=mem",
					"-chardev", "socket,id=c,server=on,wait=off,path=" + path, "-netdev", "vhost-user,id=n,chardev=c",
					"-device", device + "netdev=n,mac=" + mac,
				},
			})
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			_, err := vm.Guest.WaitReady(ctx)
			if err == nil {
				err = vm.Guest.UseNIC(ctx, mac, "10.7.0.2/24")
			}
			if err != nil {
				t.Fatal(err)
			}
			var s *traffic.Server
			if err := ns.Do(func() (err error) { s, err = traffic.ServeTCP("10.7.0.1:0"); return err }); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := vm.Guest.TCPSend(ctx, s.Addr, 1<<20); err != nil {
				t.Error(err)
			}
			if p := sw.ports()["guest"]; p.Stats.State != vport.StateUp || p.Stats.Total().RxBytes < 1<<20 {
				t.Errorf("%+v, %+v", p, p.Stats)
			}
			vm.Stop()
			sw.stop()
		})
	}
}

// TestLiveVhostUserGuest has a guest whose QEMU shares its memory with a switch, and a station on a
// tap. Pings that the guest sends while no switch runs wait for the next one.
func TestLiveVhostUserGuest(t *testing.T) {
	testvm.Require(t)
	path := filepath.Join(t.TempDir(), "frontend.sock")
	ns := nstest.New(t)
	station(t, ns.Do, nstest.Handle(t, ns), "10.7.0.1/24")
	const mac = "52:54:00:76:6d:01"
	ports := []string{"--tap", "tap0", "--vhost-user", path + ",client,name=guest"}
	sw := runSwitch(t, ns, nil, ports...)
	vm := testvm.StartT(t, testvm.Config{
		Name: uniqueVM(), MemoryMiB: 128, NoWait: true,
		ExtraArgs: []string{
			"-object", "memory-backend-memfd,id=mem,size=128M,share=on", "-machine", "memory-backend=mem",
			"-chardev", "socket,id=c,server=on,wait=off,path=" + path, "-netdev", "vhost-user,id=n,chardev=c",
			// With vectors, QEMU 7.2 crashes under TCG once the driver starts.
			"-device", "virtio-net-pci,netdev=n,vectors=0,rx_queue_size=1024,tx_queue_size=1024,mac=" + mac,
		},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	_, err := vm.Guest.WaitReady(ctx)
	if err == nil {
		err = vm.Guest.UseNIC(ctx, mac, "10.7.0.2/24")
	}
	if err != nil {
		t.Fatal(err)
	}
	var s *traffic.Server
	if err := ns.Do(func() (err error) { s, err = traffic.ServeTCP("10.7.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := vm.Guest.TCPSend(ctx, s.Addr, 4<<20); err != nil {
		t.Error(err)
	}
	p := sw.ports()["guest"]
	if p.Stats.State != vport.StateUp || p.Stats.Kind != "vhost-user" || p.Stats.Total().RxBytes < 4<<20 ||
		p.Device != path {
		t.Errorf("%+v, %+v", p, p.Stats)
	}

	sw.kill()
	waits := make(chan error, 1)
	go func() {
		r, err := vm.Guest.PingWith(ctx, traffic.Ping{Addr: "10.7.0.1", Count: 3, Timeout: time.Minute})
		if err == nil && r.Received < r.Sent {
			err = fmt.Errorf("%+v", r)
		}
		waits <- err
	}()
	again := startSwitch(t, ns, sw.socket, nil, ports...)
	if err := <-waits; err != nil {
		t.Errorf("pings sent while no switch ran: %v", err)
	}

	again.keepsSession(vm, "10.7.0.1")
	again.stop()

	// A switch that systemd starts again after it was killed. Root may enter QEMU's directory.
	u := startUnit(t, ns, strings.Join(ports, " "), "DynamicUser=no", "SystemCallFilter=@chown")
	answered := func() bool {
		r, err := vm.Guest.PingWith(ctx, traffic.Ping{Addr: "10.7.0.1", Count: 1, Timeout: time.Second})
		return err == nil && r.Received == 1
	}
	nstest.Eventually(t, patience, "the guest has an answer", answered)
	carrier := func() string {
		out, err := vm.Guest.Exec(ctx, "cat", "/sys/class/net/eth0/carrier_changes")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	changes := carrier()
	for range 2 {
		before := u.main()
		u.m.run("kill", "-KILL", before)
		r, err := vm.Guest.PingWith(ctx, traffic.Ping{Addr: "10.7.0.1", Count: 20, Timeout: 10 * time.Second})
		if err != nil || r.Received < r.Sent-1 {
			t.Errorf("%+v, %v", r, err)
		}
		t.Logf("kill -9: %d of %d pings of the guest answered, one after %v", r.Received, r.Sent, r.Max)
		u.await(before)
		if now := carrier(); now != changes {
			t.Errorf("the carrier of the guest's NIC has changed: %s times, then %s", changes, now)
		}
	}
	vm.Stop()
	nstest.Eventually(t, patience, "the port of a guest that has ended is down", func() bool {
		return u.ports()["guest"].Stats.State == vport.StateDown
	})
}

// keepsSession upgrades the switch while the guest pings, and checks that QEMU does not connect
// again.
func (r *running) keepsSession(vm *testvm.VM, addr string) {
	r.t.Helper()
	const count = 60
	pings := make(chan error, 1)
	go func() {
		got, err := vm.Guest.PingWith(r.t.Context(), traffic.Ping{Addr: addr, Count: count, Timeout: 5 * time.Second})
		if err == nil && got.Received < count-1 {
			err = fmt.Errorf("%d of %d pings to %s answered", got.Received, got.Sent, addr)
		}
		r.t.Logf("an upgrade while the guest pings %s: %d of %d answered, one after %v", addr, got.Received, got.Sent,
			got.Max)
		pings <- err
	}()
	r.upgrade()
	if err := <-pings; err != nil {
		r.t.Error(err)
	}
}

// station makes a persistent tap with an address, which is up.
func station(t *testing.T, within func(func() error) error, nl *netlink.Handle, address string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "tap0", net.HardwareAddr{2, 0, 0, 0, 0, 1}
	err := within(func() error {
		return netlink.LinkAdd(&netlink.Tuntap{
			LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_NO_PI,
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(address)
	link, linkErr := nl.LinkByName("tap0")
	if err != nil || linkErr != nil {
		t.Fatal(err, linkErr)
	}
	if err := nl.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}
