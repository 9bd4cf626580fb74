package doctor

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/tun"
	"vmnet/vhost"
)

// tunNumber is the device number of /dev/net/tun (Documentation/admin-guide/devices.txt of the
// kernel).
var tunNumber = unix.Mkdev(10, 200)

func (m Machine) tun() []Check {
	const name = "tun"
	var st unix.Stat_t
	err := unix.Stat(m.at(tun.Device), &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fail(name, "modprobe tun; in a container, give it the device", "%s is not there: no tap can be made",
			tun.Device)
	case err != nil:
		return fail(name, "", "%s: %v", tun.Device, err)
	case st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != tunNumber:
		return fail(name, "mknod -m 0666 "+tun.Device+" c 10 200", "%s is not the tun device", tun.Device)
	}
	mode := st.Mode & 0o7777
	f, err := os.OpenFile(m.at(tun.Device), os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return warn(name, "chmod 0666 "+tun.Device+": the kernel asks for CAP_NET_ADMIN anyway",
			"%s has mode %04o: you may not open it, nor may qemu-netup for you: it opens files with its caller's privileges",
			tun.Device, mode)
	case err != nil:
		return fail(name, "modprobe tun", "%v", err)
	}
	f.Close()
	if mode&0o006 != 0o006 {
		return warn(name, "chmod 0666 "+tun.Device+": the kernel asks for CAP_NET_ADMIN anyway",
			"%s can be opened, mode %04o: but not by other users, nor by qemu-netup for them", tun.Device, mode)
	}
	return ok(name, "%s can be opened, mode %04o", tun.Device, mode)
}

// vhost opens the device, unless Root names another machine.
func (m Machine) vhost() []Check {
	const name = "vhost-net"
	if _, err := os.Stat(m.at(vhost.Device)); err != nil {
		return warn(name, "modprobe vhost_net", "%s is not there: QEMU itself moves the frames, which costs more",
			vhost.Device)
	}
	if m.Root != "" {
		return ok(name, "%s is there", vhost.Device)
	}
	f, err := vhost.Open()
	if err != nil {
		return warn(name, "",
			"%v: QEMU itself moves the frames, which costs more, unless a helper that is setuid opens it", err)
	}
	f.Close()
	return ok(name, "%s can be opened", vhost.Device)
}

// portSecurity loads the program that checks frames, unless Root names another machine.
func (m Machine) portSecurity() []Check {
	const name = "port security"
	if m.Root != "" {
		return nil
	}
	err := bpfguard.Probe(portsec.Config{Checks: portsec.DHCP | portsec.RA})
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return ok(name, "only root can load its BPF program: it was not tried (sudo vmnet doctor)")
	case err != nil:
		return warn(name, "", "%v", err)
	}
	return ok(name, "the kernel loads its BPF program")
}
