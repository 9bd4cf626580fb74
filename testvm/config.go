package testvm

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"vmnet/testvm/guest"
)

// Config describes a virtual machine. The zero value is a small one without NICs.
type Config struct {
	// Name is QEMU's -name guest=; empty means "testvm".
	Name string
	// Machine is "pc" or "q35"; empty means "pc".
	Machine string
	// SparePorts is the number of empty PCIe root ports to plug devices into, with
	// the ids port0, port1 and so on. Only q35 has them; pc needs none.
	SparePorts int
	// MemoryMiB is the guest's memory; 0 means 128.
	MemoryMiB int
	// CPUs is the number of virtual processors; 0 means 1.
	CPUs int
	// NICs are those that the guest boots with.
	NICs []NIC
	// ExtraFiles are inherited by QEMU as fd 3, 4 and so on; a NIC's Netdev or ExtraArgs may name
	// them. The caller still closes its own.
	ExtraFiles []*os.File
	// QMP is the path of the monitor's socket; empty means one in the machine's own directory,
	// "none" means no monitor.
	QMP string
	// Agent is the path of the agent's socket; empty means one in the machine's own directory.
	Agent string
	// Accel is "kvm", "tcg" or "auto"; empty means "auto": KVM if it is known to work, otherwise
	// TCG.
	Accel string
	// Icount makes an emulated guest's clock count its instructions (QEMU's -icount), so that a
	// slow machine does not spend the guest's time on timer interrupts: it boots twice as fast in a
	// lab host, where all guests are so.
	Icount bool
	// KernelArgs are added to the kernel's command line: "acpi=off".
	KernelArgs []string
	// Modules are loaded besides the virtio drivers, with their dependencies: "8021q".
	Modules []string
	// ExtraArgs are added to QEMU's arguments as they are.
	ExtraArgs []string
	// AllowReset permits resets of the guest; otherwise a reset, also after a panic, ends QEMU.
	AllowReset bool
	// Paused starts QEMU with the processors stopped (-S). It implies NoWait.
	Paused bool
	// NoWait makes Start return once QEMU runs, while the guest is still booting; see
	// agent.Guest.WaitReady.
	NoWait bool
	// Cold makes the guest boot. Otherwise a guest without ExtraArgs that Start waits for begins in
	// the state of one like it that has booted before, and finds its NICs then. The cache directory
	// has such states.
	Cold bool
	// BootTimeout bounds the wait for the guest; 0 means 60 s, or 9 minutes in a lab host.
	BootTimeout time.Duration
	// Kernel is what the guest boots; the zero value means the one that FindKernel finds.
	Kernel Kernel
	// Root is a directory of this machine that the guest uses as its root, read-only below
	// a tmpfs: with "/" it is a lab host, see package lab. Empty means the initramfs.
	// The kernel must have 9p and overlayfs.
	Root string
	// Netns is the network namespace that QEMU runs in: its name in ip-netns(8), or its path, which
	// contains a slash. Empty means the caller's.
	Netns string
	// Terminal puts a shell on the guest's console and connects it with this
	// process's stdin and stdout. QEMU then stays in the foreground process group,
	// and the guest powers off when the shell ends.
	Terminal bool
	// Init is the path of the static program that becomes /init, a build of cmd/testvm. Empty means
	// this program if it is one, otherwise a new build.
	Init string
	// QEMU is the program to run; empty means qemu-system-x86_64.
	QEMU string
	// Emulator is the QEMU that the program QEMU executes with its own arguments and perhaps more
	// NICs; then the guest need not boot (see Cold). Where QEMU is given, empty means unknown.
	Emulator string
	// Logf logs the command line and the boot time; nil means no log.
	Logf func(format string, args ...any)
}

// NIC is a network device that the guest boots with.
type NIC struct {
	// ID names the device; empty means boot0, boot1 and so on.
	ID string
	// Model is QEMU's device; empty means virtio-net-pci, the only kind whose driver the guest has.
	Model string
	// MAC is the hardware address; empty means 52:54:00:76:6d:00 and following.
	MAC string
	// Netdev is the value of QEMU's -netdev, unchanged and without its id: "user,restrict=on",
	// "tap,fd=3". The netdev's id is the NIC's with the prefix "host-".
	Netdev string
	// Device is appended to the value of -device unchanged: "mq=on,vectors=6".
	Device string
}

// maxSparePorts leaves room on the root bus for the other devices.
const maxSparePorts = 16

var plainID = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]*$`)

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "testvm")
	c.Machine = cmp.Or(c.Machine, "pc")
	c.MemoryMiB = cmp.Or(c.MemoryMiB, 128)
	c.CPUs = cmp.Or(c.CPUs, 1)
	c.Accel = cmp.Or(c.Accel, "auto")
	c.Icount = c.Icount || guest.Inside()
	c.BootTimeout = cmp.Or(c.BootTimeout, bootTimeout())
	if c.QEMU == "" {
		c.QEMU, c.Emulator = "qemu-system-x86_64", "qemu-system-x86_64"
	}
	c.NoWait = c.NoWait || c.Paused
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	c.NICs = slices.Clone(c.NICs)
	for i := range c.NICs {
		n := &c.NICs[i]
		n.ID = cmp.Or(n.ID, fmt.Sprintf("boot%d", i))
		n.Model = cmp.Or(n.Model, "virtio-net-pci")
		n.MAC = cmp.Or(n.MAC, fmt.Sprintf("52:54:00:76:6d:%02x", i))
	}
	return c
}

// validate checks a Config that has its defaults. It has no side effects.
func (c Config) validate() error {
	var errs []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(strings.ContainsFunc(c.Name, func(r rune) bool {
		return r < ' '
	}), "name %q holds control characters", c.Name)
	refuse(c.Machine != "pc" && c.Machine != "q35", "machine %q is unknown (known: pc, q35)", c.Machine)
	refuse(!slices.Contains([]string{"auto", "kvm", "tcg"}, c.Accel), "accel %q is unknown (known: auto, kvm, tcg)",
		c.Accel)
	refuse(c.SparePorts < 0 ||
		c.SparePorts > maxSparePorts, "spare ports: %d is not from 0 to %d", c.SparePorts, maxSparePorts)
	refuse(c.SparePorts > 0 && c.Machine == "pc", "spare ports: machine pc has none and needs none (take q35)")
	refuse(c.MemoryMiB < 64, "memory: %d MiB is too little (the guest needs 64)", c.MemoryMiB)
	refuse(c.CPUs < 1 || c.CPUs > 255, "cpus: %d is not from 1 to 255", c.CPUs)
	refuse(c.BootTimeout < 0, "boot timeout %s is negative", c.BootTimeout)
	for _, path := range []string{c.QMP, c.Agent} {
		refuse(len(path) > 107, "socket path %q is longer than the 107 bytes that a socket's address holds", path)
	}
	ids := map[string]bool{}
	for i, n := range c.NICs {
		refuse(!plainID.MatchString(n.ID), "NIC %d: id %q is not a letter and then letters, digits, '.', '_' or '-'",
			i, n.ID)
		refuse(ids[n.ID], "NIC %d: id %q is taken by another one", i, n.ID)
		ids[n.ID] = true
		mac, err := net.ParseMAC(n.MAC)
		refuse(err != nil || len(mac) != 6 || mac[0]&1 != 0, "NIC %s: %q is no unicast hardware address", n.ID, n.MAC)
		refuse(n.Netdev == "" ||
			strings.Contains(","+n.Netdev, ",id="), "NIC %s: netdev %q must be given, and without an id",
			n.ID, n.Netdev)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configure guest %s: %w", c.Name, err)
	}
	return nil
}

// accel resolves "auto". The existence of /dev/kvm is not sufficient: if only kvm_pvm serves it, an
// ordinary guest hangs in its firmware.
func accel(want string) string {
	if want != "auto" {
		return want
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg"
	}
	_ = f.Close()
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if _, err := os.Stat("/sys/module/" + module); err == nil {
			return "kvm"
		}
	}
	return "tcg"
}

// bootTimeout allows for an emulated machine inside an emulated one, which takes over a minute on
// an idle host.
func bootTimeout() time.Duration {
	if guest.Inside() {
		return 9 * time.Minute
	}
	return time.Minute
}
