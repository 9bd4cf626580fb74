package inventory

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// startingFor is how long a guest may take from the making of its device until its QEMU opens that.
const startingFor = 5 * time.Minute

// IsStarting tells whether a link was made for a guest that is about to start.
func (dev *Device) IsStarting() bool {
	if dev.Want.Phase != nic.PhaseStarting || len(dev.Holders) > 0 {
		return false
	}
	age := SinceBoot() - dev.Want.Since
	return age >= 0 && age < int64(startingFor.Seconds())
}

// SinceBoot is CLOCK_BOOTTIME in whole seconds (proc(5), /proc/uptime).
func SinceBoot() int64 {
	var seconds float64
	text, err := os.ReadFile("/proc/uptime")
	if err == nil {
		_, err = fmt.Sscan(strings.TrimSpace(string(text)), &seconds)
	}
	if err != nil {
		return 0
	}
	return int64(seconds)
}

// awaitsLibvirt tells whether an attach that another vmnet works on is about to hand over the link
// by its name: nobody holds it for that moment, but the guest's lock is taken.
func (dev *Device) awaitsLibvirt() bool {
	if dev.Want.Via != nic.ViaLibvirt || dev.Want.Phase != nic.PhaseAttaching || len(dev.Holders) > 0 {
		return false
	}
	procs, err := qemu.OfLibvirt(dev.Want.VM)
	if err != nil {
		return true
	}
	for _, p := range procs {
		if isLocked(p) {
			return true
		}
	}
	return false
}

// libvirtsDirs are where the machine's libvirt keeps the directories of its running domains
// (LOCALSTATEDIR and RUNSTATEDIR of its build).
var libvirtsDirs = []string{"/var/lib/libvirt/", "/run/libvirt/"}

// openClaimed opens the directory that a process says libvirt has made for it. Anybody can call a
// process a guest, show a directory of his own, and have the open wait for a file system of his
// own. So for another user than root and the caller it is opened where only libvirt makes
// directories, as this process sees it.
func openClaimed(p qemu.Process) (*os.File, error) {
	if isTrusted(p.UID) {
		return OpenLock(p)
	}
	dir := filepath.Clean(p.Dir)
	if !slices.ContainsFunc(libvirtsDirs, func(in string) bool { return strings.HasPrefix(dir, in) }) {
		return nil, fmt.Errorf("%s, which process %d names, is no directory of libvirt's", dir, p.PID)
	}
	return os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
}

// isLocked reports whether somebody has the lock of a guest of libvirt's.
func isLocked(p qemu.Process) bool {
	f, err := openClaimed(p)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}

// OpenLock opens the folder, in whatever mount namespace it is.
func OpenLock(p qemu.Process) (*os.File, error) {
	if p.Dir == "" {
		return nil, fmt.Errorf("the command line of process %d does not tell where libvirt keeps its files", p.PID)
	}
	path := fmt.Sprintf("/proc/%d/root%s", p.PID, p.Dir)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (guests of the machine's libvirt need root)", err)
	}
	return f, nil
}
