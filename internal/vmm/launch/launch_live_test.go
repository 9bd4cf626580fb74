package launch_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/launch"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/testvm"
)

// TestLiveQEMUAcceptsTheLine lets QEMU, with its defaults, start what Command returns.
func TestLiveQEMUAcceptsTheLine(t *testing.T) {
	for _, tc := range []struct {
		machine string
		line    []string
		nics    []string // lines of HMP's info network
		bus     string   // of the first NIC
		spare   string   // where the next NIC would go; empty: nowhere
	}{
		{"pc", nil, []string{"model=virtio-net-pci", "model=virtio-net-pci"}, "/pci.0", "pci.0"},
		{
			"q35",
			[]string{"-M", "q35"},
			[]string{"model=virtio-net-pci", "model=virtio-net-pci"},
			"/vmnet-port0/vmnet-port0", "vmnet-port2",
		},
		{
			"q35 with ports",
			[]string{
				"-M", "q35", "-device", "pcie-root-port,id=vmnet-port0,chassis=1", "-device",
				`{"driver":"pcie-root-port","id":"x","chassis":2}`,
			},
			[]string{"model=virtio-net-pci", "model=virtio-net-pci"},
			"/vmnet-port1/vmnet-port1", "vmnet-port0",
		},
		{
			"microvm",
			[]string{"-M", "microvm"},
			[]string{"model=virtio-net-device", "model=virtio-net-device"},
			"/virtio-mmio-bus.", "",
		},
		{
			"microvm with PCI",
			[]string{"-M", "microvm,pcie=on"},
			[]string{"model=virtio-net-pci", "model=virtio-net-pci"},
			"/vmnet-port0/vmnet-port0", "vmnet-port2",
		},
	} {
		t.Run(tc.machine, func(t *testing.T) {
			c := start(t, launch.Config{VM: "P,2", SparePorts: launch.DefaultSparePorts}, tc.line)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if name, err := c.Name(ctx); name != "P,2" || err != nil {
				t.Errorf("the guest is called %q, %v", name, err)
			}
			for _, id := range []string{"vmnet-net0", "vmnet-net1"} {
				if has, err := c.HasDevice(ctx, id); !has || err != nil {
					t.Errorf("device %s: %v, %v", id, has, err)
				}
			}
			if bus := ask[string](t, c, "qom-get",
				map[string]any{
					"path":     "/machine/peripheral/vmnet-net0",
					"property": "parent_bus",
				}); !strings.Contains(bus, tc.bus) {
				t.Errorf("vmnet-net0 is on %s, want %s", bus, tc.bus)
			}
			wantNetwork(t, ask[string](t, c, "human-monitor-command", map[string]any{"command-line": "info network"}),
				tc.nics)
			port, err := c.FreePort(ctx)
			if port.Bus != tc.spare || (tc.spare == "") != errors.Is(err, qmp.ErrNoPort) {
				t.Errorf("free port %q, %v, want %q", port.Bus, err, tc.spare)
			}
		})
	}
}

// A booted guest gives a NIC of its command line back, and the root port is free again.
func TestLiveGuestLetsGoOfItsNIC(t *testing.T) {
	files, nics := taps(t, nstest.New(t))
	config := launch.Config{NICs: nics}
	command, err := config.Command([]string{"qemu-system-x86_64", "-M", "q35", "-name", "testvm"})
	if err != nil {
		t.Fatal(err)
	}
	vm := testvm.StartT(t, testvm.Config{Machine: "q35", ExtraFiles: files, ExtraArgs: command.Argv[5:]})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, n := range nics {
		if _, err := vm.Guest.WaitNIC(ctx, n.Device.MAC.String()); err != nil {
			t.Fatal(err)
		}
	}
	c := dial(t, vm.QMP)
	if port, err := c.FreePort(ctx); !errors.Is(err, qmp.ErrNoPort) {
		t.Errorf("port %q is free, %v, though no spare one was asked for", port.Bus, err)
	}
	if err := c.Unplug(ctx, "vmnet-net1", nil); err != nil {
		t.Fatal(err)
	}
	if port, err := c.FreePort(ctx); port.Bus != "vmnet-port1" || err != nil {
		t.Errorf("port %q is free, %v", port.Bus, err)
	}
}

// wantNetwork wants the NICs with their taps and nothing else, above all no NIC by default.
func wantNetwork(t *testing.T, got string, models []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(got, "\r", "")), "\n")
	for i, model := range models {
		if id := "vmnet-net" + string(rune('0'+i)); !strings.Contains(got, id+": index=0,type=nic,"+model) ||
			!strings.Contains(got, id+"-netdev: index=0,type=tap,") {
			t.Errorf("no %s with %s in\n%s", id, model, got)
		}
	}
	// net0 has one queue, net1 two; each has a line for its NIC's and its tap's side.
	if strings.Contains(got, "type=user") || strings.Contains(got, "hub") || len(lines) != 6 {
		t.Errorf("there is more, or less, than two NICs:\n%s", got)
	}
}

func ask[T any](t *testing.T, c *qmp.Conn, command string, args map[string]any) (reply T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Execute(ctx, command, args, &reply); err != nil {
		t.Fatal(err)
	}
	return reply
}

// taps makes a tap of one queue and one of two, which are to be fd 3, 4 and 5.
func taps(t *testing.T, ns *netns.NS) (files []*os.File, nics []launch.NIC) {
	t.Helper()
	for i, queues := range []int{1, 2} {
		n := nic("net"+string(rune('0'+i)), 3+len(files), queues, false)
		tap, err := tun.Create(ns, n.Interface, queues > 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tap.Close() })
		for range queues - 1 {
			if err := tap.AddQueue(); err != nil {
				t.Fatal(err)
			}
		}
		files, nics = append(files, tap.Queues()...), append(nics, n)
	}
	return files, nics
}

// start starts a QEMU that inherits taps, with its processors stopped.
func start(t *testing.T, config launch.Config, line []string) *qmp.Conn {
	t.Helper()
	bin, err := exec.LookPath("qemu-system-x86_64")
	nstest.Require(t, "qemu", err == nil, "apt-get install qemu-system-x86")
	dir, err := os.MkdirTemp("", "launch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	files, nics := taps(t, nstest.New(t))
	config.NICs = nics
	config.Monitor = filepath.Join(dir, "q,mp")
	command, err := config.Command(append([]string{bin, "-S", "-m", "64", "-display", "none", "-no-user-config"},
		line...))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%q", command.Argv)

	cmd := exec.Command(command.Argv[0], command.Argv[1:]...)
	var stderr strings.Builder
	cmd.ExtraFiles, cmd.Stderr = files, &stderr
	runtime.LockOSThread() // with which QEMU dies, should the test be killed
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if stderr.Len() > 0 {
			t.Errorf("QEMU said: %s", stderr.String())
		}
	})
	c := dial(t, config.Monitor)
	wantListed(t, cmd.Process.Pid, config)
	return c
}

// wantListed wants that others find the guest by its command line.
func wantListed(t *testing.T, pid int, config launch.Config) {
	t.Helper()
	p, err := qemu.ByPID(pid)
	if err != nil || p.Name != config.VM || len(p.Monitors) != 1 || p.Monitors[0].Path != config.Monitor {
		t.Errorf("process %d is %+v, %v", pid, p, err)
	}
}

func dial(t *testing.T, path string) *qmp.Conn {
	t.Helper()
	var c *qmp.Conn
	nstest.Eventually(t, 30*time.Second, "QEMU listens", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var err error
		if c, err = qmp.Dial(ctx, path); err != nil && !errors.Is(err, fs.ErrNotExist) &&
			!errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		return err == nil
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}
