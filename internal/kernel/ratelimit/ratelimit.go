// Package ratelimit limits the rate of a guest's NIC in the kernel, as package portrate
// (bridge/portrate) describes. What the guest's device sends passes a token bucket filter
// (tc-tbf(8)), in which frames wait: of a tap these are frames to the guest, of a macvtap or ipvtap
// those from it. What the device receives passes a token bucket in BPF, at the clsact qdisc of the
// device, which drops what is over the rate. Such a program also limits packets, in both
// directions: tbf does not count them.
//
// With Shape, received frames wait as well: see shaper.go.
//
// All but a shaper goes with the device. `nft flush ruleset` does not touch it. Linux 5.10 has all.
package ratelimit

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/clsact"
	"vmnet/internal/kernel/rtnl"
)

// filter is the filters' place at their hooks: behind that of port security (package bpfguard), so
// that a frame that port security drops costs nothing.
var filter = rtnl.Filter{Priority: 2, Handle: 1, Kind: "bpf", Name: filterName}

// filterName begins the filters' names, which have the limits as text.
const filterName = "vmnet_rate"

// maxWait is how long frames wait for their turn at a high rate, which makes leastWait negligible.
const maxWait = 50 * time.Millisecond

// leastWait is how many bytes may wait besides, at any rate: two super-frames.
const leastWait = 128 << 10

// sides are the limits of a device's two directions.
type sides struct {
	tbf    *rtnl.TBF // nil for none
	hook   map[rtnl.Hook]portrate.Bucket
	shaper *rtnl.TBF // of received frames; nil for none
}

// isReversed reports whether a device sends what comes from the guest.
func isReversed(l *rtnl.Link) bool { return l.Kind == "macvtap" || l.Kind == "ipvtap" }

func sidesOf(l *rtnl.Link, cfg portrate.Config) sides {
	sent, received := cfg.DownBucket(), cfg.UpBucket()
	if isReversed(l) {
		sent, received = received, sent
	}
	s := sides{hook: map[rtnl.Hook]portrate.Bucket{}}
	s.tbf = tbfOf(sent)
	if cfg.Shape {
		s.shaper = tbfOf(received)
		received = portrate.Bucket{Limit: portrate.Limit{Packets: received.Packets}}
	}
	s.hook[rtnl.Egress] = portrate.Bucket{Limit: portrate.Limit{Packets: sent.Packets}}
	s.hook[rtnl.Ingress] = received
	return s
}

// tbfOf returns a filter in which frames wait for their turn; nil if their bits are not limited.
func tbfOf(b portrate.Bucket) *rtnl.TBF {
	if b.Bits == 0 {
		return nil
	}
	rate := b.Bits / 8
	waiting := float64(rate)*maxWait.Seconds() + leastWait
	return &rtnl.TBF{Rate: rate, Burst: uint32(b.Burst), Limit: uint32(min(waiting, math.MaxInt32))}
}

// NeedsBPF reports whether such limits take a BPF program, and with it CAP_BPF: of a macvtap or
// ipvtap if isLower is set, else of a tap.
func NeedsBPF(isLower bool, cfg portrate.Config) bool {
	received := cfg.Up
	if isLower {
		received = cfg.Down
	}
	if cfg.Shape {
		received.Bits = 0
	}
	return received.Bits+cfg.Up.Packets+cfg.Down.Packets > 0
}

// nameOf returns the name of the filter with that bucket.
func nameOf(b portrate.Bucket) string {
	name := filterName + " " + b.Limit.String()
	if b.Burst != 0 {
		name += " burst " + portrate.FormatBurst(b.Burst)
	}
	return name
}

// Check returns an error if a link of that MTU in bytes cannot have such limits.
func Check(mtu int, cfg portrate.Config) error {
	const header = 14 + 8 // Ethernet, with two VLAN tags
	for _, b := range []portrate.Bucket{cfg.UpBucket(), cfg.DownBucket()} {
		if b.Bits != 0 && b.Burst < uint64(mtu+header) {
			return fmt.Errorf("burst of %s: a frame of %d bytes could never pass (--burst %dk, or less MTU)",
				portrate.FormatBurst(b.Burst), mtu+header, (mtu+header+1023)>>10)
		}
	}
	return nil
}

// Set makes the limits of the guest behind a link those of cfg, whatever they were. c is a socket
// in the link's netns. What is so already stays as it is. If a qdisc or a filter of others is in
// the way, nothing is changed, and the error matches clsact.ErrForeign. What was set is read back.
func Set(c *rtnl.Conn, l *rtnl.Link, cfg portrate.Config) error {
	err := set(c, l, cfg)
	if err == nil {
		err = verify(c, l, cfg)
	}
	if err != nil {
		return fmt.Errorf("rates of %s: %w", l.Name, err)
	}
	return nil
}

// verify returns an error unless the limits are those of cfg: Open vSwitch removes the tbf of a new
// port, for example.
func verify(c *rtnl.Conn, l *rtnl.Link, cfg portrate.Config) error {
	s, err := Read(c, l)
	if err == nil && !s.Is(cfg) {
		err = fmt.Errorf("somebody has changed them meanwhile: they are %s, and were set to %s", s,
			cmp.Or(cfg.String(), portrate.None))
	}
	return err
}

func set(c *rtnl.Conn, l *rtnl.Link, cfg portrate.Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if err := Check(l.MTU, cfg); err != nil {
		return err
	}
	want := sidesOf(l, cfg)
	qs, err := c.Qdiscs(l.Index)
	if err != nil {
		return fmt.Errorf("read the qdiscs: %w", err)
	}
	if err := obstaclesOf(c, l, qs).to(want); err != nil {
		return err
	}
	if err := setReceived(c, l, want); err != nil {
		return errors.Join(err, c.TidyClsact(l.Index))
	}
	if want.tbf == nil {
		if err := c.DeleteTBF(l.Index); err != nil {
			return fmt.Errorf("delete the tbf qdisc: %w", err)
		}
		return c.TidyClsact(l.Index)
	}
	if err := setTBF(c, l, *want.tbf); err != nil {
		return errors.Join(err, c.TidyClsact(l.Index))
	}
	return c.TidyClsact(l.Index)
}

// setReceived sets the filters of both hooks, and the shaper: one that is wanted before them, none
// after them. So no frame passes without a limit meanwhile.
func setReceived(c *rtnl.Conn, l *rtnl.Link, want sides) error {
	if want.shaper != nil {
		if err := setShaper(c, l, *want.shaper); err != nil {
			return errors.Join(err, deleteShaper(c, l))
		}
	}
	for _, hook := range []rtnl.Hook{rtnl.Ingress, rtnl.Egress} {
		if err := setFilter(c, l, hook, want.hook[hook]); err != nil {
			return err
		}
	}
	if want.shaper == nil {
		return deleteShaper(c, l)
	}
	return nil
}

func setTBF(c *rtnl.Conn, l *rtnl.Link, t rtnl.TBF) error {
	err := c.SetTBF(l.Index, t)
	if err == nil {
		return nil
	}
	qs, _ := c.Qdiscs(l.Index) // err is what counts
	if foreign := rootInTheWay(qs, l); foreign != nil {
		return foreign
	}
	return fmt.Errorf("set a tbf qdisc: %w", explain(err, "CONFIG_NET_SCH_TBF: modprobe sch_tbf"))
}

// rootInTheWay returns an error if another program has given the link its root qdisc.
func rootInTheWay(qs rtnl.Qdiscs, l *rtnl.Link) error {
	q := qs.ForeignRoot()
	if q == nil {
		return nil
	}
	return fmt.Errorf("root qdisc %s is %w (tc qdisc del dev %s root)", q, clsact.ErrForeign, l.Name)
}

// obstacles are the qdiscs, filters and links of other programs that are in the way of limits, by
// side.
type obstacles struct {
	root   error
	hook   map[rtnl.Hook]error
	shaper error
}

func obstaclesOf(c *rtnl.Conn, l *rtnl.Link, qs rtnl.Qdiscs) obstacles {
	o := obstacles{root: rootInTheWay(qs, l), hook: map[rtnl.Hook]error{}}
	for _, hook := range []rtnl.Hook{rtnl.Ingress, rtnl.Egress} {
		o.hook[hook] = clsact.InTheWayAt(c, l, qs, hook, filter)
	}
	if o.shaper = clsact.InTheWayAt(c, l, qs, rtnl.Ingress, redirection); o.shaper == nil {
		_, o.shaper = shaperOf(c, l)
	}
	return o
}

// to returns the first that is in the way of these limits.
func (o obstacles) to(want sides) error {
	if want.tbf != nil && o.root != nil {
		return o.root
	}
	for _, hook := range []rtnl.Hook{rtnl.Ingress, rtnl.Egress} {
		shapes := hook == rtnl.Ingress && want.shaper != nil
		if (shapes || !want.hook[hook].IsZero()) && o.hook[hook] != nil {
			return o.hook[hook]
		}
	}
	if want.shaper != nil {
		return o.shaper
	}
	return nil
}

// setFilter makes the filter at a hook that of the bucket, or removes it.
func setFilter(c *rtnl.Conn, l *rtnl.Link, hook rtnl.Hook, b portrate.Bucket) error {
	old, err := find(c, l, hook)
	switch {
	case err != nil:
		return err
	case b.IsZero() && old == nil:
		return nil
	case b.IsZero():
		return clsact.Delete(c, l.Index, hook, *old)
	case old != nil && isOf(*old, b):
		return nil
	}
	p, err := load(b)
	if err != nil {
		return explain(err, "CONFIG_BPF_SYSCALL, Linux 5.10 or newer")
	}
	defer p.Close()
	f := filter
	f.Name = nameOf(b)
	return clsact.Set(c, l, hook, f, p.FD(), func(err error) error { return explain(err, clsact.Need) })
}

// ErrUnavailable is returned where this kernel, or this process, cannot limit rates.
var ErrUnavailable = errors.New("limits of a NIC's rate are not available")

// explain adds the cure to an error; need is what the kernel needs.
func explain(err error, need string) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %w (use a kernel with %s)", ErrUnavailable, err, need)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		const cure = "run it as root of the host, where no seccomp filter or kernel lockdown forbids bpf(2); " +
			"or use a userspace switch, whose limits need no privilege"
		return fmt.Errorf("%w: %w (%s)", ErrUnavailable, err, cure)
	}
	explained, _ := clsact.Explain(err, ErrUnavailable)
	return explained
}

// find returns this package's filter at a hook; nil for none.
func find(c *rtnl.Conn, l *rtnl.Link, hook rtnl.Hook) (*rtnl.Filter, error) {
	return clsact.Find(c, l.Index, hook, func(f rtnl.Filter) bool {
		return f.Kind == filter.Kind && f.Priority == filter.Priority && strings.HasPrefix(f.Name, filterName+" ")
	})
}

// isOf reports whether a filter has that bucket's program.
func isOf(f rtnl.Filter, b portrate.Bucket) bool {
	return f.Name == nameOf(b) && hasTag(programOf(b), f.Tag)
}

// State is how a link's rates are limited.
type State struct {
	link   *rtnl.Link
	tbf    *rtnl.TBF // nil for none
	filter map[rtnl.Hook]*rtnl.Filter
	shaper *shaper // nil for none

	obstacles obstacles
}

// Read reads how a link's rates are limited. It needs no privilege.
func Read(c *rtnl.Conn, l *rtnl.Link) (State, error) {
	s := State{link: l, filter: map[rtnl.Hook]*rtnl.Filter{}}
	qs, err := c.Qdiscs(l.Index)
	if err != nil {
		return s, fmt.Errorf("read the rates of %s: %w", l.Name, err)
	}
	s.obstacles = obstaclesOf(c, l, qs)
	tbf, err := qs.TBF()
	switch {
	case err == nil:
		s.tbf = &tbf
	case !errors.Is(err, fs.ErrNotExist):
		return s, fmt.Errorf("read the rates of %s: %w", l.Name, err)
	}
	for _, hook := range []rtnl.Hook{rtnl.Ingress, rtnl.Egress} {
		if s.filter[hook], err = find(c, l, hook); err != nil {
			return s, fmt.Errorf("read the rates of %s: %w", l.Name, err)
		}
	}
	if s.shaper, err = readShaper(c, l); err != nil {
		return s, fmt.Errorf("read the shaper of %s: %w", l.Name, err)
	}
	return s, nil
}

// Obstacle returns an error, which matches clsact.ErrForeign, if a qdisc, filter or link of another
// program is in the way of cfg's limits.
func (s State) Obstacle(cfg portrate.Config) error { return s.obstacles.to(sidesOf(s.link, cfg)) }

// Is reports whether the limits are those of cfg, and nothing of another program is in their way.
func (s State) Is(cfg portrate.Config) bool {
	want := sidesOf(s.link, cfg)
	if s.obstacles.to(want) != nil {
		return false
	}
	if (s.tbf == nil) != (want.tbf == nil) || s.tbf != nil && !s.tbf.Is(*want.tbf) {
		return false
	}
	if (s.shaper == nil) != (want.shaper == nil) ||
		s.shaper != nil && (s.shaper.tbf == nil || !s.shaper.tbf.Is(*want.shaper)) {
		return false
	}
	for hook, b := range want.hook {
		f := s.filter[hook]
		if (f == nil) != b.IsZero() || f != nil && !isOf(*f, b) {
			return false
		}
	}
	return true
}

// String describes the limits as they were found, such as "up 100M burst 128k; down 1G burst 2M";
// "none" if there are none.
func (s State) String() string {
	sent, received := "down", "up"
	if isReversed(s.link) {
		sent, received = received, sent
	}
	var words []string
	if f := s.filter[rtnl.Ingress]; f != nil {
		words = append(words, received+strings.TrimPrefix(f.Name, filterName))
	}
	if s.shaper != nil {
		words = append(words, "shaped "+tbfText(received, s.shaper.tbf))
	}
	if s.tbf != nil {
		words = append(words, tbfText(sent, s.tbf))
	}
	if f := s.filter[rtnl.Egress]; f != nil {
		words = append(words, sent+strings.TrimPrefix(f.Name, filterName))
	}
	if len(words) == 0 {
		return portrate.None
	}
	return strings.Join(words, "; ")
}

func tbfText(direction string, t *rtnl.TBF) string {
	if t == nil {
		return direction + " incompletely"
	}
	return fmt.Sprintf("%s %s burst %d", direction, portrate.Limit{Bits: t.Rate * 8}, t.Burst)
}
