// Package clsact has what packages bpfguard and ratelimit share: BPF programs as filters at the
// clsact qdisc of a link (tc-bpf(8)).
package clsact

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/rtnl"
)

// Find returns the first filter of a hook for which is returns true; nil for none.
func Find(c *rtnl.Conn, link int, hook rtnl.Hook, is func(rtnl.Filter) bool) (*rtnl.Filter, error) {
	all, err := c.Filters(link, hook)
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	for _, f := range all {
		if is(f) {
			return &f, nil
		}
	}
	return nil, nil
}

// namePrefix begins the names of the filters of bpfguard and ratelimit.
const namePrefix = "vmnet_"

// Set makes or replaces the filter f of a hook, so that the program of that fd runs for each frame.
// The link gets the qdisc if it has none. If a qdisc or filter of another program is in the way,
// the error is that of [InTheWay]. explain adds the cure to an error of the kernel; most callers
// begin with [Explain].
func Set(c *rtnl.Conn, l *rtnl.Link, hook rtnl.Hook, f rtnl.Filter, program int, explain func(error) error) error {
	if err := InTheWay(c, l, hook, f); err != nil {
		return err
	}
	if err := c.AddClsact(l.Index); err != nil {
		return fmt.Errorf("add a clsact qdisc: %w", explain(err))
	}
	if err := c.SetBPFFilter(l.Index, hook, f, program); err != nil {
		return fmt.Errorf("add the filter: %w", explain(err))
	}
	return nil
}

// ErrForeign is returned where a qdisc or filter of another program is in the way.
var ErrForeign = errors.New("another program's")

// InTheWay returns an error, which matches [ErrForeign], if a qdisc or filter of another program
// has f's place at the link, or may keep frames from f, as a filter before it can.
func InTheWay(c *rtnl.Conn, l *rtnl.Link, hook rtnl.Hook, f rtnl.Filter) error {
	qs, err := c.Qdiscs(l.Index)
	if err != nil {
		return fmt.Errorf("read the qdiscs: %w", err)
	}
	return InTheWayAt(c, l, qs, hook, f)
}

// InTheWayAt is InTheWay for a link that has these qdiscs.
func InTheWayAt(c *rtnl.Conn, l *rtnl.Link, qs rtnl.Qdiscs, hook rtnl.Hook, f rtnl.Filter) error {
	q := qs.Filters()
	switch {
	case q == nil:
		return nil
	case q.Kind != "clsact": // whose filters all are for received frames (ingress_tcf_block)
		return fmt.Errorf("qdisc %s is %w (tc qdisc del dev %s %s)", q, ErrForeign, l.Name, q.Kind)
	case q.Block(hook) != 0:
		return fmt.Errorf("the filters of qdisc %s are in block %d, which is %w (tc qdisc del dev %s clsact)",
			q, q.Block(hook), ErrForeign, l.Name)
	}
	all, err := c.Filters(l.Index, hook)
	if err != nil {
		return fmt.Errorf("list filters: %w", err)
	}
	for _, other := range all {
		isOurs := other.Kind == "bpf" && strings.HasPrefix(other.Name, namePrefix) ||
			other.Kind == "u32" && other.Handle&0xfff == rtnl.RedirectHandle ||
			other.Kind == "u32" && other.Handle&0xfff == 0 // a table, which has filters of its own
		if other.Priority <= f.Priority && !isOurs {
			return fmt.Errorf("the %s filter of pref %d is %w, and not behind vmnet's (%s %s %s pref %[2]d)",
				other.Kind, other.Priority, ErrForeign, "tc filter del dev", l.Name, hook)
		}
	}
	return nil
}

// Delete removes a filter. It is no error if it has gone.
func Delete(c *rtnl.Conn, link int, hook rtnl.Hook, f rtnl.Filter) error {
	if err := c.DeleteFilter(link, hook, f); rtnl.IgnoreNotExist(err) != nil {
		return fmt.Errorf("delete the filter: %w", err)
	}
	return nil
}

// Need is what the kernel needs for filters.
const Need = "CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF: modprobe -a sch_ingress cls_bpf"

// Explain returns an error of the kernel with its cure, and unavailable where the kernel lacks what
// filters need. ok is false for an error that is not about filters.
func Explain(err, unavailable error) (explained error, ok bool) {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w (use a kernel with %s)", unavailable, err, Need), true
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY):
		const cure = "does a filter of another program have its place? tc filter show dev DEVICE ingress, or egress"
		return fmt.Errorf("%w (%s)", err, cure), true
	}
	return err, false
}

// WithMemlock loads maps and programs by load. If that is not permitted, it tries again without a
// limit of locked memory, to which kernels before Linux 5.11 charge them, and sets the limit back.
func WithMemlock(load func() error) error {
	err := load()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	var old unix.Rlimit
	all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old) != nil || unix.Setrlimit(unix.RLIMIT_MEMLOCK, &all) != nil {
		return err // not permitted; then neither is BPF
	}
	return errors.Join(load(), unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old))
}
