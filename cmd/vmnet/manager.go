package main

import (
	"context"
	"fmt"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr"
)

// withManager calls f with a Manager for --netns.
func (a *app) withManager(f func(*tapmgr.Manager) error) error {
	return tapmgr.In(a.netns, func(m *tapmgr.Manager) error {
		m.Progress = a.progress()
		m.AskSwitches, m.Switches = true, a.runningSwitches()
		m.UseHelper(helperPath())
		m.Libvirt = a.libvirt
		m.AskLibvirt()
		return f(m)
	})
}

// withBridges calls f with the bridges of --netns.
func (a *app) withBridges(f func(*bridge.Host) error) error {
	h, err := bridge.Open(a.netns)
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

// withNetlink calls f with a netlink socket in --netns.
func (a *app) withNetlink(f func(*rtnl.Conn) error) error {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// progressEvery is a little less than the second after which waits report their progress, so that
// jitter suppresses none of the reports.
const progressEvery = 900 * time.Millisecond

// runningSwitches returns the control sockets of the switches that this user could reach.
func (a *app) runningSwitches() []string {
	paths, err := control.Running()
	if err != nil {
		a.note(fmt.Sprintf("the switches were not asked: %v", err))
	}
	return paths
}

// progress returns a function that prints what could not be seen, and at most once a second what is
// being waited for.
func (a *app) progress() func(tapmgr.ProgressKind, string) {
	var last time.Time
	return func(kind tapmgr.ProgressKind, text string) {
		if kind == tapmgr.Unseen {
			a.note(text)
		} else if time.Since(last) >= progressEvery {
			last = time.Now()
			a.say(text)
		}
	}
}

// withTimeout bounds ctx by d. The cause names the flag that changes d.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("timed out after %v (--timeout allows more)", d))
}
