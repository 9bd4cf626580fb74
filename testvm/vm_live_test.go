package testvm

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"vmnet/internal/leaktest"
	"vmnet/qmp"
	"vmnet/testvm/agent"
	"vmnet/testvm/traffic"
)

// helperEnv makes the test program a process that starts a machine and waits.
const helperEnv = "TESTVM_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		helper()
		return
	}
	leaktest.Main(m)
}

func TestLiveGuestOnBothMachines(t *testing.T) {
	for _, c := range []Config{
		{Name: "pc"},
		{Name: "q35", Machine: "q35", SparePorts: 4, CPUs: 2},
	} {
		t.Run(c.Name, func(t *testing.T) {
			c.NICs = []NIC{{Netdev: "user,restrict=on"}}
			vm := StartT(t, c)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			g := vm.Guest
			nic, err := g.WaitNIC(ctx, "52:54:00:76:6d:00")
			if err != nil {
				t.Fatal(err)
			}
			if nic.Name != "eth0" || nic.Driver != "virtio_net" || nic.PCI == "" || nic.TxQueues != 1 || nic.Up {
				t.Errorf("the NIC: %+v", nic)
			}
			if err := errors.Join(g.Up(ctx, "eth0"), g.AddAddr(ctx, "eth0", "10.0.2.15/24"),
				g.AddRoute(ctx, "default", "10.0.2.2")); err != nil {
				t.Fatal(err)
			}
			rtt, err := g.Ping(ctx, "10.0.2.2")
			if err != nil || rtt <= 0 {
				t.Fatalf("ping: %s, %v", rtt, err)
			}
			name, err := g.Exec(ctx, "hostname")
			if err != nil || name != c.Name+"\n" {
				t.Errorf("hostname: %q, %v", name, err)
			}
			if n, err := g.WaitNIC(ctx, nic.MAC); err != nil || !n.Up || !n.Carrier || n.Counters.RxPackets == 0 ||
				n.Counters.TxBytes == 0 {
				t.Errorf("after the ping: %+v, %v", n, err)
			}
		})
	}
}

func TestLiveAgentMethods(t *testing.T) {
	g := StartT(t, Config{Name: "P2", NICs: []NIC{{Netdev: "user,restrict=on"}}}).Guest
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	fails := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", what, err, want)
		}
	}
	check("set MTU", g.SetMTU(ctx, "eth0", 1400))
	check("set MAC", g.SetMAC(ctx, "eth0", "52:54:00:00:00:99"))
	check("up", g.Up(ctx, "eth0"))
	check("add v6", g.AddAddr(ctx, "eth0", "fd00::2/64"))
	check("add again", g.AddAddr(ctx, "eth0", "fd00::2/64"))
	_, err := g.Ping(ctx, "fd00::2")
	check("ping the new v6 address", err)
	link, err := g.WaitNIC(ctx, "52:54:00:00:00:99")
	check("wait for the MAC", err)
	if link.MTU != 1400 || !strings.Contains(strings.Join(link.Addrs, " "), "fd00::2/64") {
		t.Errorf("the changed link: %+v", link)
	}
	check("delete v6", g.DelAddr(ctx, "eth0", "fd00::2/64"))
	fails("delete again", g.DelAddr(ctx, "eth0", "fd00::2/64"), "guest P2: addr: address fd00::2/64 on eth0")
	check("down", g.Down(ctx, "eth0"))
	check("wait for no such NIC", g.WaitNICGone(ctx, "52:54:00:00:00:98"))
	fails("no such link", g.Up(ctx, "eth7"), "link eth7")
	_, err = g.Exec(ctx, "no-such-tool")
	fails("no such tool", err, "no such program in the guest")
	_, err = g.Exec(ctx, "sh", "-c", "echo sorry >&2; exit 7")
	fails("exit status", err, "exit status 7: sorry")
	out, err := g.Run(ctx, agent.Command{Argv: []string{"wc", "-c"}, Stdin: "12345"})
	check("stdin", err)
	if strings.TrimSpace(out.Stdout) != "5" || out.Code != 0 {
		t.Errorf("wc -c: %+v", out)
	}

	addr, err := g.TCPServe(ctx, "127.0.0.1:0")
	check("tcp serve", err)
	tcp, err := g.TCPSend(ctx, addr, 1<<20)
	check("tcp send", err)
	if tcp.Bytes != 1<<20 {
		t.Errorf("tcp: %+v", tcp)
	}
	check("tcp unserve", g.TCPUnserve(ctx, addr))
	_, err = g.TCPSend(ctx, addr, 1)
	fails("tcp send to nobody", err, "refused")
	addr, err = g.UDPServe(ctx, "[::1]:0")
	check("udp serve", err)
	udp, err := g.UDPSend(ctx, addr, 20, 1000)
	check("udp send", err)
	if want := (traffic.UDPResult{Sent: 20, Received: 20}); udp != want {
		t.Errorf("udp: %+v, want %+v", udp, want)
	}
}

func TestLiveAbandonedRequestsEndInTheGuest(t *testing.T) {
	vm := StartT(t, Config{})
	g := vm.Guest
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := g.Exec(short, "sleep", "1234"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	ctx, cancel2 := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel2()
	for {
		out, err := g.Exec(ctx, "ps")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, "sleep 1234") {
			break
		}
	}
	// Once this connection has ended, another one finds the agent in a working state.
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Links(ctx); !errors.Is(err, agent.ErrGone) {
		t.Errorf("on the closed connection: %v", err)
	}
	for range 3 {
		again, err := agent.Dial(ctx, "again", vm.Agent)
		if err != nil {
			t.Fatal(err)
		}
		_, err = again.Links(ctx)
		if err := errors.Join(err, again.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLiveHotPlug(t *testing.T) {
	const mac = "52:54:00:00:00:77"
	for _, c := range []Config{
		{Name: "pc"},
		{Name: "q35", Machine: "q35", SparePorts: 2},
		{
			Name: "q35-native", Machine: "q35",
			SparePorts: 2, ExtraArgs: []string{"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"},
		},
	} {
		t.Run(c.Name, func(t *testing.T) {
			vm := StartT(t, c)
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
			defer cancel()
			monitor, err := qmp.Dial(ctx, vm.QMP)
			if err != nil {
				t.Fatal(err)
			}
			defer monitor.Close()
			device := map[string]any{"driver": "virtio-net-pci", "id": "n", "netdev": "h", "mac": mac}
			if c.SparePorts > 0 {
				device["bus"] = "port1"
			}
			start := time.Now()
			netdev := map[string]any{"type": "user", "id": "h", "restrict": true}
			if err := errors.Join(monitor.NetdevAdd(ctx, netdev), monitor.DeviceAdd(ctx, device)); err != nil {
				t.Fatal(err)
			}
			nic, err := vm.Guest.WaitNIC(ctx, mac)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("plugged after %s: %s at %s", time.Since(start).Round(time.Millisecond), nic.Name, nic.PCI)
			if err := errors.Join(vm.Guest.Up(ctx, nic.Name),
				vm.Guest.AddAddr(ctx, nic.Name, "10.0.2.15/24")); err != nil {
				t.Fatal(err)
			}
			if _, err := vm.Guest.Ping(ctx, "10.0.2.2"); err != nil {
				t.Error(err)
			}
			start = time.Now()
			if err := monitor.RequestUnplug(ctx, "n"); err != nil {
				t.Fatal(err)
			}
			if err := vm.Guest.WaitNICGone(ctx, mac); err != nil {
				t.Fatal(err)
			}
			t.Logf("unplugged after %s", time.Since(start).Round(time.Millisecond))
		})
	}
}
