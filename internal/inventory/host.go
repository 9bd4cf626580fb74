// Package inventory reads what there is of vmnet's NICs on a host: links and their aliases, the
// processes that hold them, the ports of userspace switches. It changes nothing. What it returns is
// plain data, and so are its verdicts: the state of a NIC, who holds it, and how it differs from
// its record.
package inventory

import (
	"context"
	"fmt"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// A Host is one network namespace, and the processes that can be seen from here. Its methods may be
// called at the same time.
type Host struct {
	NS *netns.NS
	NL *rtnl.Conn // in NS

	// Switches, if not nil, lists the control sockets of the userspace switches that are asked for
	// guests' NICs; where ok is false, none is asked. So a privileged helper does: anybody can run
	// a switch.
	Switches func() (paths []string, ok bool, err error)
	// OfLibvirt, if not nil, asks libvirt what vmnet's NICs are of the guests whose VMMs these
	// processes are. It is called where a VMM holds a queue of a device that may have been deleted,
	// and returns none where libvirt does not answer soon.
	OfLibvirt func(ctx context.Context, pids []int) []LibvirtNIC
	// Notice, if not nil, is called with what could not be seen, such as a switch that does not
	// answer.
	Notice func(text string)
	// LookInto, if not nil, runs f with the privilege to look into other users' processes, which a
	// privileged helper has at no other time.
	LookInto func(f func() error) error

	silence silence
}

func (h *Host) notice(format string, args ...any) {
	if h.Notice != nil {
		h.Notice(fmt.Sprintf(format, args...))
	}
}

// WithPrivilege runs f with the privilege to look into other users' processes, where there is one.
func (h *Host) WithPrivilege(f func() error) error {
	if h.LookInto != nil {
		return h.LookInto(f)
	}
	return f()
}

// PollEvery is how often the kernel is asked for something that has no event we could wait for.
const PollEvery = 5 * time.Millisecond
