package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// libvirtScript starts libvirtd (its argument is the folder for its socket) with an
// /etc, /run and /var of its own. Control groups are off because a machine may have
// none; it does without an own log daemon, security driver and user as well.
// None of that makes it slower. The shell stays as the first process, which has to reap
// what libvirtd's children leave: libvirtd waits for them by kill(2), 40 s long.
const libvirtScript = `set -e
mount -t proc proc /proc
mount -t tmpfs none /run
mount -t tmpfs none /var
mkdir -p /var/etc/libvirt
cp /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache /var/etc
mount --bind /var/etc /etc
printf 'unix_sock_dir = "%s"\nauth_unix_rw = "none"\n' "$1" >/etc/libvirt/libvirtd.conf
cat >/etc/libvirt/qemu.conf <<E
user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
E
libvirtd </dev/null
`

// libvirtDomain is like the other guests; acpi is what hot plug needs.
const libvirtDomain = `<domain type='qemu'>
  <name>bench</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
`

// virsh starts libvirtd with a standing guest.
func (l *lab) virsh() func(int) (time.Duration, error) {
	l.libvirtd()
	virsh := func(args ...string) (time.Duration, error) {
		uri := "qemu+unix:///system?socket=" + filepath.Join(l.dir, "libvirt-sock")
		return timed(append([]string{"virsh", "-q", "-c", uri}, args...)...)
	}
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err = virsh("version"); err == nil {
			break
		}
	}
	file := filepath.Join(l.dir, "domain.xml")
	if err == nil {
		err = os.WriteFile(file, []byte(libvirtDomain), 0o600)
	}
	if err == nil {
		_, err = virsh("create", "--paused", file)
	}
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(l.dir, "libvirtd.log"))
		l.Fatalf("%v\nlibvirtd said:\n%s", err, log)
	}
	return func(int) (time.Duration, error) {
		return virsh("attach-interface", "bench", "bridge", "br0", "--model", "virtio", "--live")
	}
}

// libvirtd starts it as the first process of a process namespace: its guests end with it.
func (l *lab) libvirtd() {
	log, err := os.Create(filepath.Join(l.dir, "libvirtd.log"))
	if err != nil {
		l.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("sh", "-s", l.dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(libvirtScript), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:    syscall.SIGKILL,
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS,
	}
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}
