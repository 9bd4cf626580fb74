package tapmgr

import (
	"errors"
	"fmt"
	"os"

	"vmnet/internal/qemu"
	"vmnet/internal/tun"
)

// holders is who holds the queues of the taps in a netns: what is alive and
// what is left over is told by that alone, never by a guest's name.
type holders struct {
	byName map[string][]tun.Holder
	all    bool // every process could be looked at
}

// holders reads them from /proc.
func (m *Manager) holders() (*holders, error) {
	byName, err := tun.Holders(m.ns)
	return &holders{byName, os.Geteuid() == 0}, err
}

func (h *holders) of(name string) []tun.Holder { return h.byName[name] }

// none tells that surely nobody holds the tap. Who may not look into all
// processes cannot tell.
func (h *holders) none(name string) bool { return h.all && len(h.byName[name]) == 0 }

// vmm returns the QEMU that holds the tap; 0 where none is seen.
func (h *holders) vmm(name string) int {
	for _, holder := range h.byName[name] {
		if _, err := qemu.ByPID(holder.PID); err == nil {
			return holder.PID
		}
	}
	return 0
}

// stranger returns a process that holds the tap and is no QEMU, such as a vmnet
// that works on it; 0 where none is seen.
func (h *holders) stranger(name string) int {
	for _, holder := range h.byName[name] {
		if _, err := qemu.ByPID(holder.PID); errors.Is(err, qemu.ErrNotFound) {
			return holder.PID
		}
	}
	return 0
}

// othersThan returns a process other than pid that holds the tap; 0 where none is seen.
func (h *holders) othersThan(pid int, name string) int {
	for _, holder := range h.byName[name] {
		if holder.PID != pid {
			return holder.PID
		}
	}
	return 0
}

// mayRelease tells whether a tap that is not plugged into the guest whose lock we
// hold may be taken away: an error names the process that uses it.
func (m *Manager) mayRelease(o *ours, pid int) error {
	held, err := m.holders()
	if err != nil {
		return err
	}
	if other := held.othersThan(pid, o.Name); other != 0 {
		return fmt.Errorf("%w: interface %s, which process %d holds", ErrInUse, o.Name, other)
	}
	return nil
}
