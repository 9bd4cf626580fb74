package main

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/term"

	"vmnet/internal/declare"
	"vmnet/internal/watch"
	"vmnet/tapmgr"
)

// How long watch waits for one NIC of a guest that starts.
const (
	attachPatience = 10 * time.Second
	detachPatience = 30 * time.Second
)

// declared returns what gives guests their declared NICs when they start, and on SIGHUP.
func (a *app) declared(ctx context.Context, m *tapmgr.Manager, chosen string) (
	func(context.Context, func(watch.Report)), error,
) {
	dir, err := guestsDir(chosen)
	if err != nil {
		return nil, err
	}
	ap := a.applier(m, attachPatience)
	ap.DetachWait = detachPatience
	hangUps, stop := takeHangUps(ctx)
	hadTerminal := hasTerminal()
	return func(ctx context.Context, report func(watch.Report)) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		reload := make(chan struct{})
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-hangUps:
				}
				if hadTerminal && !hasTerminal() {
					stop() // the terminal was closed: nobody is left to press Ctrl-C
					return
				}
				select {
				case reload <- struct{}{}:
				case <-ctx.Done():
					return
				}
			}
		}()
		w := declare.Watcher{
			Applier: ap, Reload: reload, Read: dir.All, Stamp: dir.Stamp,
			Applied: func(name string, p *declare.Plan, err error) {
				for _, r := range reportsOf(name, p, err) {
					report(r)
				}
			},
		}
		w.Run(ctx)
	}, nil
}

func hasTerminal() bool { return term.IsTerminal(int(os.Stdin.Fd())) }

// reportsOf returns a line for each NIC that was changed or could not be, or for a file.
func reportsOf(name string, p *declare.Plan, err error) []watch.Report {
	if p == nil {
		return []watch.Report{{Text: "declared guests: a file cannot be read", Guest: name, Err: err}}
	}
	var all []watch.Report
	told := false
	for _, c := range p.Changes {
		r := watch.Report{
			Text: changeText(c, c.Err != nil), Guest: p.VM, NIC: c.NIC, Interface: c.Interface, Err: c.Err,
		}
		if c.Done || c.Err != nil {
			all = append(all, r)
		}
		told = told || c.Err != nil && errors.Is(err, c.Err)
	}
	if err != nil && !told {
		all = append(all, watch.Report{Text: "declared NICs are not applied", Guest: p.VM, Err: err})
	}
	return all
}
