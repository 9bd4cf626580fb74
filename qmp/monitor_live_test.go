package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/internal/nstest"
)

func TestLiveQueries(t *testing.T) {
	q := startQEMU(t, "pc", "-name", "guest=P2", "-smp", "3", "-device", "virtio-net-pci,id=nic,mac=52:54:00:00:00:07")
	c := q.dial(t)
	ctx := within(t, 30*time.Second)
	if c.Peer().PID != q.cmd.Process.Pid {
		t.Errorf("peer %+v, want pid %d", c.Peer(), q.cmd.Process.Pid)
	}
	if major, _, _ := c.Version(); major < 5 {
		t.Errorf("QEMU version %d", major)
	}
	if name, err := c.Name(ctx); name != "P2" || err != nil {
		t.Errorf("Name: %q, %v", name, err)
	}
	if n, err := c.CPUs(ctx); n != 3 || err != nil {
		t.Errorf("CPUs: %d, %v", n, err)
	}
	for id, want := range map[string]bool{"nic": true, "type": false, "none": false} {
		if has, err := c.HasDevice(ctx, id); has != want || err != nil {
			t.Errorf("HasDevice(%s): %v, %v", id, has, err)
		}
	}
	if f, err := c.RxFilter(ctx, "nic"); err != nil || f.MainMAC != "52:54:00:00:00:07" || !f.Promiscuous ||
		f.Unicast != "normal" {
		t.Errorf("RxFilter: %+v, %v", f, err)
	}
	if _, err := c.RxFilter(ctx, "none"); !refused(err) {
		t.Errorf("RxFilter of nothing: %v", err)
	}
	var schema json.RawMessage
	if err := c.Execute(ctx, "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100_000 {
		t.Errorf("query-qmp-schema: %d bytes, %v", len(schema), err)
	}
	if err := c.Execute(ctx, "no-such-command", nil, nil); !refused(err) {
		t.Errorf("unknown command: %v", err)
	}
}

func TestLiveSecondClientWaitsItsTurn(t *testing.T) {
	q := startQEMU(t, "pc")
	first := q.dial(t)
	if _, err := Dial(within(t, 300*time.Millisecond), q.path); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	waiting, got := make(chan struct{}), make(chan error, 1)
	go func() {
		c, err := Dialer{Waiting: func() { close(waiting) }}.Dial(within(t, 20*time.Second), q.path)
		if err == nil {
			_, err = c.Name(within(t, 20*time.Second))
			_ = c.Close()
		}
		got <- err
	}()
	<-waiting
	_ = first.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestLiveQEMUDies(t *testing.T) {
	ns := nstest.New(t)
	q := startQEMU(t, "pc")
	c := q.dial(t)
	ctx := within(t, 30*time.Second)
	queues := newTap(t, ns, "vd0", 1)
	if err := c.GetFD(ctx, "q", queues[0]); err != nil {
		t.Fatal(err)
	}
	closeAll(queues)
	q.stop(t) // so that the command is in flight for sure
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := c.Name(ctx); !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
		})
	}
	nstest.Eventually(t, 20*time.Second, "the commands are in flight", func() bool {
		return nstest.Waiting("qmp.(*Conn).await") == 3
	})
	if err := q.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	<-c.Done()
	wantGone(t, ns, "vd0")
}

func TestLiveFreePort(t *testing.T) {
	root := func(id, more string) []string { return []string{"-device", "pcie-root-port,id=" + id + "," + more} }
	concat := func(lists ...[]string) (all []string) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	for _, tc := range []struct {
		name, machine string
		args          []string
		want          Port
		text          string // of the error
	}{
		{"pc", "pc", nil, Port{"pci.0", ""}, ""},
		{"pc, few slots left", "pc", fullFrom(8), Port{"pci.0", ""}, ""},
		{"pc, full", "pc", fullFrom(2), Port{}, "all 1 are taken"},
		{
			"pc, full with a bridge", "pc",
			concat([]string{
				"-device", "pci-bridge,id=br,chassis_nr=1,addr=2", "-device",
				"virtio-rng-pci,bus=br,addr=1",
			}, fullFrom(3)),
			Port{"br", "2"},
			"",
		},
		{"pc without ACPI", "pc,acpi=off", nil, Port{}, "no bus of this machine takes devices while it runs"},
		{
			"pc without hot plug", "pc",
			[]string{"-global", "PIIX4_PM.acpi-root-pci-hotplug=off"},
			Port{},
			"no bus of this machine",
		},
		{"q35", "q35", nil, Port{}, "pcie-root-port,id=port0,chassis=1"},
		{
			"q35 with ports", "q35", concat(root("port0", "chassis=1"), root("port1", "chassis=2")),
			Port{"port0", ""},
			"",
		},
		{
			"q35, native hot plug", "q35",
			concat(root("port0", "chassis=1"),
				[]string{"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"}),
			Port{"port0", ""},
			"",
		},
		{
			"q35, first port taken", "q35",
			concat(root("port0", "chassis=1"), root("port1", "chassis=2"),
				[]string{"-device", "virtio-rng-pci,bus=port0"}),
			Port{"port1", ""},
			"",
		},
		{
			"q35, all taken", "q35",
			concat(root("port0", "chassis=1"), []string{"-device", "virtio-rng-pci,bus=port0"}),
			Port{},
			"all 1 are taken",
		},
		{"q35, port without hot plug", "q35", root("port0", "chassis=1,hotplug=off"), Port{}, "pcie-root-port,id="},
		{
			"q35, native, without hot plug", "q35",
			concat(root("port0", "chassis=1,hotplug=off"),
				[]string{"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"}),
			Port{},
			"pcie-root-port,id=",
		},
		{"q35, port without id", "q35", []string{"-device", "pcie-root-port,chassis=1"}, Port{}, "pcie-root-port,id="},
		{"q35 with a PCI bridge", "q35", []string{"-device", "pcie-pci-bridge,id=br"}, Port{"br", "1"}, ""},
		{
			"q35, bridge, native", "q35",
			[]string{
				"-device", "pcie-pci-bridge,id=br", "-global",
				"ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
			},
			Port{"br", "1"},
			"",
		},
		{
			"q35, port before bridge", "q35",
			concat([]string{"-device", "pcie-pci-bridge,id=br"}, root("zport", "chassis=1")),
			Port{"zport", ""},
			"",
		},
		{
			"q35 with a switch", "q35",
			concat(root("port0", "chassis=1"), []string{
				"-device", "x3130-upstream,id=up,bus=port0", "-device",
				"xio3130-downstream,id=zdown,bus=up,chassis=2",
			}),
			Port{"zdown", ""},
			"",
		},
		{"microvm", "microvm", nil, Port{}, "no PCI bus"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := startQEMU(t, tc.machine, tc.args...).dial(t)
			ctx := within(t, 30*time.Second)
			port, err := c.FreePort(ctx)
			if tc.text != "" {
				if !errors.Is(err, ErrNoPort) || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("got %+v, %v; want %q", port, err, tc.text)
				}
				return
			}
			if err != nil || port != tc.want {
				t.Fatalf("got %+v, %v; want %+v", port, err, tc.want)
			}
			// The proof: QEMU takes a device there.
			n := NIC{ID: "n", Bus: port.Bus, Addr: port.Addr}
			args := n.deviceArgs()
			delete(args, "netdev")
			if err := c.DeviceAdd(ctx, args); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLiveFreePortThroughARelay: the last place, which the owner of the monitor uses last.
func TestLiveFreePortThroughARelay(t *testing.T) {
	ports := func(n int) (args []string) {
		for i := range n {
			args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=pci.%d,chassis=%[1]d", i+1))
		}
		return args
	}
	for _, tc := range []struct {
		name, machine string
		args          []string
		want          Port
	}{
		{"pc", "pc", nil, Port{"pci.0", "1f"}},
		{"pc, the last slot is taken", "pc", []string{"-device", "virtio-rng-pci,addr=1f"}, Port{"pci.0", "1e"}},
		{"pc, full", "pc", fullFrom(2), Port{}},
		{"q35", "q35", ports(3), Port{"pci.3", ""}},
		{
			"q35, the last port is taken", "q35", append(ports(3), "-device", "virtio-rng-pci,bus=pci.3"),
			Port{"pci.2", ""},
		},
		{"q35 with a PCI bridge", "q35", []string{"-device", "pcie-pci-bridge,id=br"}, Port{"br", "1f"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := throughT(t, holder{startQEMU(t, tc.machine, tc.args...).dial(t)})
			ctx := within(t, 30*time.Second)
			port, err := c.FreePort(ctx)
			if port != tc.want || (err == nil) != (tc.want != Port{}) || err != nil && !errors.Is(err, ErrNoPort) {
				t.Fatalf("got %+v, %v; want %+v", port, err, tc.want)
			}
			if err != nil {
				return
			}
			n := NIC{ID: "n", Bus: port.Bus, Addr: port.Addr}
			args := n.deviceArgs()
			delete(args, "netdev")
			if err := c.DeviceAdd(ctx, args); err != nil {
				t.Error(err)
			}
		})
	}
}

// fullFrom fills the slots of a pc's root bus from the given one on.
func fullFrom(slot int) (args []string) {
	for ; slot < pciSlots; slot++ {
		args = append(args, "-device", fmt.Sprintf("virtio-rng-pci,addr=%#x", slot))
	}
	return args
}

// TestLiveFormerClient: who leaves without waiting for a reply has it sent to the next client.
func TestLiveFormerClient(t *testing.T) {
	q := startQEMU(t, "pc", "-name", "guest=next")
	_ = q.dial(t).Close()
	for i := range 12 {
		former, err := net.Dial("unix", q.path)
		if err != nil {
			t.Fatal(err)
		}
		id := []string{"", `, "id": "libvirt-7"`, `, "id": 1`, `, "id": {}`}[i%4]
		lines := bufio.NewScanner(former)
		fmt.Fprintln(former, `{"execute": "qmp_capabilities"}`)
		for range 2 { // the greeting, and the answer
			if !lines.Scan() {
				t.Fatal(lines.Err())
			}
		}
		fmt.Fprintf(former, `{"execute": "query-qmp-schema"%s}`, id)
		time.Sleep(time.Duration(i) * time.Millisecond / 2) // not a wait: it leaves while QEMU answers
		_ = former.Close()
		c, err := Dial(within(t, 20*time.Second), q.path)
		if err != nil {
			t.Fatalf("after a command with the id %q: %v", id, err)
		}
		if name, err := c.Name(within(t, 20*time.Second)); name != "next" || err != nil {
			t.Errorf("after a command with the id %q: name %q, %v", id, name, err)
		}
		_ = c.Close()
	}
}
