// Package monitor reports what changes around guests' NICs as it happens: links, ports of bridges,
// NICs and guests. It changes nothing.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// Kinds of events.
const (
	KindLink  = "link"
	KindPort  = "port" // of a bridge
	KindNIC   = "nic"  // of a guest
	KindGuest = "guest"
	KindNote  = "note" // about the monitor itself
)

// An Event is one change. Its JSON keys are stable. Users choose the names.
type Event struct {
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"`
	Change string    `json:"change"`          // such as "added", "removed", "up", "joined"
	Name   string    `json:"name"`            // of the link; VM/NIC; of the guest
	Guest  string    `json:"guest,omitempty"` // of a NIC
	PID    int       `json:"pid,omitempty"`   // of a guest's VMM
	Text   string    `json:"text,omitempty"`  // details
}

// A Guest is a running VMM.
type Guest struct {
	PID  int
	Name string
}

// Config is what a Monitor needs.
type Config struct {
	NS     *netns.NS
	NL     *rtnl.Conn // in NS
	NICs   func(context.Context) ([]nic.NIC, error)
	Guests func() ([]Guest, error)
	Report func(Event) error // its error ends the monitor
}

// How often things are looked at that send no events, and how long the links must be quiet before
// the NICs are looked at, but no longer than maxDelay.
const (
	guestEvery = 2 * time.Second
	quiet      = 200 * time.Millisecond
	maxDelay   = 2 * time.Second
)

// Run reports changes until ctx ends, which is success. It calls ready once it would notice any.
func Run(ctx context.Context, cfg Config, ready func()) error {
	events, err := rtnl.OpenEvents(cfg.NS)
	if err != nil {
		return err
	}
	r := &run{Config: cfg, links: map[int]*rtnl.Link{}}
	if err := r.readLinks(); err != nil {
		return errors.Join(err, events.Close())
	}
	got, failed := make(chan rtnl.Event), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); failed <- receive(ctx, events, got) }()
	err = r.loop(ctx, got, failed, ready)
	cancel()
	err = errors.Join(err, events.Close())
	<-done
	return err
}

// receive passes events on. One without a link says that events were lost.
func receive(ctx context.Context, events *rtnl.Events, got chan<- rtnl.Event) error {
	for {
		e, err := events.Next()
		switch {
		case errors.Is(err, rtnl.ErrLost):
			e = rtnl.Event{}
		case errors.Is(err, fs.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		select {
		case got <- e:
		case <-ctx.Done():
			return nil
		}
	}
}

type run struct {
	Config
	links  map[int]*rtnl.Link
	nics   []nic.NIC
	guests []Guest
}

func (r *run) readLinks() error {
	all, err := r.NL.Links("", 0)
	for _, l := range all {
		r.links[l.Index] = l
	}
	return err
}

func (r *run) loop(ctx context.Context, got <-chan rtnl.Event, failed <-chan error, ready func()) (err error) {
	if r.nics, err = r.NICs(ctx); err != nil {
		return err
	}
	if r.guests, err = r.Guests(); err != nil {
		return err
	}
	ready()
	ticker := time.NewTicker(guestEvery)
	defer ticker.Stop()
	look := time.NewTimer(time.Hour)
	look.Stop()
	var since time.Time // of the first event that waits for a look; zero for none
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case err = <-failed:
		case e := <-got:
			err = r.took(e)
			if since.IsZero() {
				since = time.Now()
			}
			look.Reset(min(quiet, max(0, maxDelay-time.Since(since))))
		case <-look.C:
			since = time.Time{}
			err = r.lookAtNICs(ctx)
		case <-ticker.C:
			err = r.lookAtGuests(ctx)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// took reports the changes of a link.
func (r *run) took(e rtnl.Event) error {
	if e.Link == nil {
		old := r.links
		r.links = map[int]*rtnl.Link{}
		if err := r.readLinks(); err != nil {
			return err
		}
		lost := Event{Kind: KindNote, Change: "lost", Text: "events were lost; this is what they led to"}
		return r.report(append([]Event{lost}, diffAll(old, r.links)...))
	}
	old := r.links[e.Index]
	if e.Gone {
		delete(r.links, e.Index)
		return r.report(diffLink(old, nil, r.name))
	}
	r.links[e.Index] = e.Link
	return r.report(diffLink(old, e.Link, r.name))
}

func (r *run) name(index int) string { return nameOf(r.links, index) }

func nameOf(links map[int]*rtnl.Link, index int) string {
	if l := links[index]; l != nil {
		return l.Name
	}
	return fmt.Sprintf("interface %d", index)
}

func (r *run) report(events []Event) error {
	now := time.Now()
	for _, e := range events {
		e.Time = now
		if err := r.Report(e); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) lookAtNICs(ctx context.Context) error {
	now, err := r.NICs(ctx)
	if err != nil {
		return err
	}
	old := r.nics
	r.nics = now
	return r.report(diffNICs(old, now))
}

func (r *run) lookAtGuests(ctx context.Context) error {
	now, err := r.Guests()
	if err != nil {
		return err
	}
	events := diffGuests(r.guests, now)
	r.guests = now
	if err := r.report(events); err != nil || len(events) == 0 {
		return err
	}
	return r.lookAtNICs(ctx) // those on sockets have no links
}
