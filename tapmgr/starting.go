package tapmgr

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/qemu"
)

// startingFor is how long a guest may take from the making of its device until its QEMU opens that.
const startingFor = 5 * time.Minute

// starts tells whether a link was made for a guest that is about to start.
func (o *ours) starts() bool {
	if o.want.Phase != starting || len(o.holders) > 0 {
		return false
	}
	age := sinceBoot() - o.want.Since
	return age >= 0 && age < int64(startingFor.Seconds())
}

// sinceBoot is CLOCK_BOOTTIME in whole seconds (proc(5), /proc/uptime).
func sinceBoot() int64 {
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

// awaitsLibvirt tells whether an attach that another vmnet works on is about to hand over the link by its name: nobody
// holds it for that moment, but the guest's lock is taken.
func (o *ours) awaitsLibvirt() bool {
	if o.want.Via != ViaLibvirt || o.want.Phase != attaching || len(o.holders) > 0 {
		return false
	}
	procs, err := qemu.OfLibvirt(o.want.VM)
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

// isLocked tells whether somebody has the lock of a guest of libvirt's.
func isLocked(p qemu.Process) bool {
	f, err := openLock(p)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}
