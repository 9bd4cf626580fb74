package launch_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/internal/vmm/launch"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
)

// TestLiveMachines: QEMUs of other architectures start with the NIC that Command gives them, where
// the machine has room for it, and take another one while they run wherever that is possible.
func TestLiveMachines(t *testing.T) {
	files, nics := taps(t, nstest.New(t))
	for _, tc := range []struct {
		line  string
		bus   string // of the NIC
		spare string // where the next NIC goes; "-": where QEMU chooses; empty: nowhere
	}{
		{"qemu-system-aarch64 -M virt -cpu cortex-a57", "/vmnet-port0", "vmnet-port1"},
		{"qemu-system-aarch64 -M sbsa-ref", "/pcie.0", ""},
		{"qemu-system-aarch64 -M raspi3b", "/usb-bus.0", ""},
		{"qemu-system-aarch64 -M xlnx-versal-virt", "/virtio-mmio-bus.", ""},
		{"qemu-system-arm -M virt", "/vmnet-port0", "vmnet-port1"},
		{"qemu-system-arm -M vexpress-a15", "/virtio-mmio-bus.", ""},
		{"qemu-system-arm -M versatilepb", "/pci", ""},
		{"qemu-system-riscv64 -M virt -bios none", "/vmnet-port0", "vmnet-port1"},
		{"qemu-system-loongarch64 -m 1G", "/vmnet-port0", "vmnet-port1"},
		{"qemu-system-s390x", "/virtual-css", "-"},
		{"qemu-system-ppc64 -M pseries", "/pci.0", "pci.0"},
		{"qemu-system-ppc -M g3beige", "/pci.0", ""},
		{"qemu-system-m68k -M virt", "/virtio-mmio-bus.", ""},
		{"qemu-system-or1k -M virt", "/pcie.0", ""},
		{"qemu-system-xtensa -M virt -cpu dc233c", "/pcie.0", ""},
		{"qemu-system-alpha", "/pci", ""},
		{"qemu-system-hppa", "/pci", ""},
		{"qemu-system-x86_64 -M isapc", "/isa.0", ""},
	} {
		t.Run(tc.line, func(t *testing.T) {
			argv := append(strings.Fields(tc.line), "-S", "-display", "none", "-nodefaults", "-no-user-config")
			nic := nics[0]
			nic.Device.Model = qemu.MachineOf(argv).Place.Model()
			c := startLine(t, launch.Config{VM: "P2", SparePorts: 1, NICs: []launch.NIC{nic}}, argv, files[0])
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			bus := ask[string](t, c, "qom-get",
				map[string]any{"path": "/machine/peripheral/vmnet-net0", "property": "parent_bus"})
			if !strings.Contains(bus, tc.bus) {
				t.Errorf("vmnet-net0 is on %s, want %s", bus, tc.bus)
			}
			model, err := c.BestModel(ctx)
			if err != nil {
				t.Fatal(err)
			}
			place, err := c.FreePortFor(ctx, model)
			if want := strings.TrimPrefix(tc.spare, "-"); place.Bus != want ||
				(tc.spare == "") != errors.Is(err, qmp.ErrNoPort) {
				t.Errorf("a %s goes to %q, %v; want %q", model, place.Bus, err, want)
			}
		})
	}
}

// startLine starts a QEMU with one tap, its processors stopped.
func startLine(t *testing.T, config launch.Config, argv []string, tap *os.File) *qmp.Conn {
	t.Helper()
	_, err := exec.LookPath(argv[0])
	nstest.Require(t, "qemu", err == nil, "apt-get install qemu-system-arm qemu-system-misc qemu-system-ppc")
	dir, err := os.MkdirTemp("", "launch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config.Monitor = filepath.Join(dir, "qmp")
	command, err := config.Command(argv)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command.Argv[0], command.Argv[1:]...)
	var stderr strings.Builder
	cmd.ExtraFiles, cmd.Stderr = []*os.File{tap}, &stderr
	runtime.LockOSThread() // with which QEMU dies, should the test be killed
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for {
		select {
		case <-ended:
			t.Fatalf("QEMU ended: %s\n%q", &stderr, command.Argv)
		case <-time.After(10 * time.Millisecond):
		}
		if _, err := os.Stat(config.Monitor); err == nil {
			return dial(t, config.Monitor)
		}
	}
}
