package testvm

import (
	"fmt"
	"strconv"
	"strings"

	"vmnet/testvm/agent"
	"vmnet/testvm/guest"
)

// Files are the paths that a machine's command line names.
type Files struct {
	Kernel    string
	Initramfs string
	// QMP and Agent are sockets; Console is the log of the serial port.
	QMP, Agent, Console string
}

// instructionTime is that of an instruction of a Config.Icount: 2^3 ns, which is shorter than an
// emulated processor takes in a lab host, so that the guest's clock is not ahead of real time.
const instructionTime = "3"

// CommandLine returns QEMU's complete command line. It has no side effects; the accelerator "auto"
// becomes TCG.
func CommandLine(c Config, f Files) ([]string, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	kvm := c.Accel == "kvm"
	argv := []string{
		c.QEMU, "-name", "guest=" + escape(c.Name),
		"-nodefaults", "-no-user-config", "-display", "none",
	}
	switch {
	case kvm:
		argv = append(argv, "-machine", c.Machine+",accel=kvm", "-cpu", "host")
	case c.Icount:
		argv = append(argv, "-machine", c.Machine+",accel=tcg", "-icount", "shift="+instructionTime)
	default:
		argv = append(argv, "-machine", c.Machine+",accel=tcg")
	}
	argv = append(argv, "-m", strconv.Itoa(c.MemoryMiB), "-smp", strconv.Itoa(c.CPUs),
		"-kernel", f.Kernel, "-initrd", f.Initramfs, "-append", kernelArgs(c))
	if !c.AllowReset {
		argv = append(argv, "-no-reboot")
	}
	if c.Paused {
		argv = append(argv, "-S")
	}
	if c.QMP != "none" {
		argv = append(argv, "-qmp", "unix:"+escape(f.QMP)+",server=on,wait=off")
	}
	console := "file,id=console,path=" + escape(f.Console)
	if c.Terminal {
		console = "stdio,id=console,signal=off,logfile=" + escape(f.Console)
	}
	argv = append(argv,
		"-chardev", console, "-serial", "chardev:console",
		// QEMU creates the sockets in this order: once the agent's exists, the monitor's does too.
		"-chardev", "socket,id=agent,path="+escape(f.Agent)+",server=on,wait=off",
		"-device", "virtio-serial-pci,id=serial0",
		"-device", "virtserialport,bus=serial0.0,chardev=agent,name="+agent.PortName)
	if c.Root != "" {
		argv = append(argv,
			// Without remap, files of different file systems could have one inode number.
			"-fsdev", "local,id=root,path="+escape(c.Root)+",security_model=none,readonly=on,multidevs=remap",
			"-device", "virtio-9p-pci,fsdev=root,mount_tag="+guest.RootTag)
	}
	for i := range c.SparePorts {
		argv = append(argv, "-device", fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d", i, i+1))
	}
	for _, n := range c.NICs {
		argv = append(argv, n.argv()...)
	}
	return append(argv, c.ExtraArgs...), nil
}

func (n NIC) argv() []string {
	device := fmt.Sprintf("%s,id=%s,netdev=host-%s,mac=%s,romfile=", n.Model, n.ID, n.ID, n.MAC)
	if n.Device != "" {
		device += "," + n.Device
	}
	return []string{"-netdev", n.Netdev + ",id=host-" + n.ID, "-device", device}
}

// kernelArgs returns the guest kernel's command line. A panic resets at once, so that -no-reboot
// ends QEMU and Start notices.
func kernelArgs(c Config) string {
	args := []string{
		"console=ttyS0", "loglevel=4", "panic=-1", "net.ifnames=0", "mitigations=off", "tsc=reliable",
		"no_timer_check", "cryptomgr.notests",
	}
	if plainID.MatchString(c.Name) {
		args = append(args, guest.HostnameArg+c.Name)
	}
	if c.Terminal {
		args = append(args, guest.ShellArg)
	}
	if c.Root != "" {
		args = append(args, guest.RootArg)
	}
	return strings.Join(append(args, c.KernelArgs...), " ")
}

// escape doubles commas, as QEMU's option values require.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }
