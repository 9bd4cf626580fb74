// Package watch does, while it runs, what no hook can do. It gives the taps that libvirt makes for
// NICs attached live the settings that their domain declares. It puts ports back on a bridge that
// was deleted and made again, and resets the addresses of taps that their holders have changed. It
// makes macvtaps accept the multicast groups that their guests ask for, removes devices that
// libvirt has released, keeps what routed NICs need of the host, puts back the programs that check
// and limit frames, has NICs join userspace switches that were started again, removes the ports of
// Open vSwitch whose taps have gone, mends networks that differ from their files, and gives guests
// the NICs that their files declare.
//
// It keeps nothing that it could not read again: declarations come from libvirt, the state of links
// from the kernel. It remembers only what it has done already, for as long as the link exists.
package watch

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network"
	"vmnet/internal/nsport"
	"vmnet/libvirt"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// Config says what to watch.
type Config struct {
	NS      *netns.NS       // stays the caller's
	Manager *tapmgr.Manager // for NS

	// Dial connects to the libvirt whose domains are watched, read-only; nil: no libvirt is
	// watched.
	Dial func(ctx context.Context) (*libvirt.Conn, error)
	// MayBeAbsent is for a libvirt that the user has not named: it is no failure if it is not
	// installed.
	MayBeAbsent bool
	// DialMonitor connects so that monitor commands are allowed. It is used only while a domain has
	// a NIC whose multicast groups are mirrored.
	DialMonitor func(ctx context.Context) (*libvirt.Conn, error)

	// Commit commits the NICs that libvirt's hook has prepared for a guest, or for all if vm is
	// empty, if it has arrived; nil: nobody does.
	Commit func(ctx context.Context, vm string) ([]nic.ChangeResult, error)

	// Networks are mended when they differ from their files; nil: none is watched. Changes of NS
	// cause that.
	Networks *network.Manager

	// Declared, if not nil, gives guests the NICs that their files declare, until ctx ends.
	Declared func(ctx context.Context, report func(Report))

	// Rejoin has NICs join userspace switches again that were started again; nil: none does.
	Rejoin func(ctx context.Context) ([]nic.Action, error)

	// Ends puts the ends of vmnet netns attach back on bridges that were made again; nil: none is.
	Ends *nsport.Manager

	// Report receives what was done and what failed, from one goroutine at a time.
	Report func(Report)
	// Ready is called once, when everything that happens from then on is noticed; nil does nothing.
	Ready func()
}

// Report is one action or one failure.
type Report struct {
	Text      string // what: "port set to vlan:20"
	Guest     string // the guest concerned; empty if none
	NIC       string // id or MAC
	Interface string
	Err       error // why it failed; nil if it succeeded
}

// rereadEvery bounds how often all links, or libvirt's domains, are read again because events were
// lost.
const rereadEvery = 200 * time.Millisecond

type watcher struct {
	Config
	nl       *rtnl.Conn
	reportMu sync.Mutex
	readyMu  sync.Mutex
	isReady  bool

	ports   *ports
	macs    *addresses
	bridges *bridges
	routes  *routes
	mirrors *mirrors
	rows    *rows
	domains domains
	left    *leavings // of serve
	coming  *leavings // of serve: guests whose NICs could not be committed

	changes *rtnl.Changes // nil without Networks
	filters *rtnl.Changes // of qdiscs and filters
}

// Run watches until ctx ends, which is no error, or the kernel's events cannot be received.
func Run(ctx context.Context, cfg Config) (err error) {
	events, err := rtnl.OpenEvents(cfg.NS)
	if err != nil {
		return err
	}
	nl, err := rtnl.Open(cfg.NS)
	if err != nil {
		return errors.Join(err, events.Close())
	}
	defer nl.Close()
	w := &watcher{Config: cfg, nl: nl}
	if w.filters, err = rtnl.OpenFilterChanges(cfg.NS); err != nil {
		return errors.Join(err, events.Close())
	}
	defer func() { err = errors.Join(err, w.filters.Close()) }()
	if cfg.Networks != nil {
		if w.changes, err = rtnl.OpenChanges(cfg.NS); err != nil {
			return errors.Join(err, events.Close())
		}
		defer func() { err = errors.Join(err, w.changes.Close()) }()
	}
	w.ports = newPorts(cfg.Manager.SetForeignPortOf, w.report)
	w.macs = newAddresses(cfg.Manager.SetBackAddress, w.report)
	w.bridges = newBridges(w.putBack)
	w.routes = newRoutes(w.keepRouted)
	w.mirrors = newMirrors(w, cfg.Manager)
	w.rows = newRows(w.tidyRows)
	return w.run(ctx, events)
}

func (w *watcher) run(ctx context.Context, events *rtnl.Events) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = events.Close() })
	defer stop()
	if err := w.readLinks(); err != nil {
		return errors.Join(err, events.Close())
	}
	all.Go(func() { w.bridges.work(ctx) })
	all.Go(func() { w.routes.work(ctx) })
	all.Go(func() { w.mirrors.work(ctx) })
	all.Go(func() { w.keepPolicing(ctx) })
	all.Go(func() {
		w.rows.work(ctx, func(err error) {
			w.report(Report{Text: "ports of Open vSwitch are not removed yet", Err: err})
		})
	})
	if w.Rejoin != nil {
		all.Go(func() { newSwitches(w.Rejoin, w.tried).work(ctx) })
	}
	if w.Declared != nil {
		all.Go(func() { w.Declared(ctx, w.report) })
	}
	if w.changes != nil {
		all.Go(func() { w.Networks.Watch(ctx, w.changes.C, w.mended) })
	}
	if w.Dial != nil {
		all.Go(func() { w.followLibvirt(ctx) })
	} else {
		w.ready()
	}
	err := w.links(ctx, events)
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(err, events.Close())
}

// links handles the kernel's events.
func (w *watcher) links(ctx context.Context, events *rtnl.Events) error {
	for {
		e, err := events.Next()
		if errors.Is(err, rtnl.ErrLost) {
			err = w.reread(ctx, events)
		} else if err == nil {
			w.event(e)
		}
		if err != nil {
			return err
		}
	}
}

// event is quick: a new tap waits for its settings until it returns.
func (w *watcher) event(e rtnl.Event) {
	switch {
	case e.Gone:
		w.ports.forget(e.Index)
		w.macs.forget(e.Index)
		w.bridges.gone(e.Index)
		w.routes.gone(e.Index)
		w.rows.gone(e.Link)
	case e.Bridge != nil:
		w.bridges.seen(e.Index, e.Name)
		w.routes.link()
	case e.Tun != nil:
		w.macs.link(e.Link)
		w.ports.link(e.Link)
		w.routes.device(e.Link)
	default: // a new macvtap, or its parent device: the kernel reports that one when a macvtap is added
		w.mirrors.stir()
		w.routes.device(e.Link)
		w.routes.link()
	}
}

// reread makes up for lost events. In a storm its pause bounds the cost of watching, and a list of
// links may be disturbed time and again.
func (w *watcher) reread(ctx context.Context, events *rtnl.Events) error {
	for {
		if !sleep(ctx, rereadEvery) {
			return ctx.Err()
		}
		if err := events.Drain(); err != nil { // events after this are newer than the links read now
			return err
		}
		err := w.readLinks()
		if !errors.Is(err, rtnl.ErrDisturbed) {
			return err
		}
	}
}

// readLinks handles all links as if they were new, and forgets those that are gone.
func (w *watcher) readLinks() error {
	var all []*rtnl.Link
	for _, kind := range []string{"bridge", "tun", string(vtap.Macvtap), string(vtap.IPVtap)} {
		some, err := w.nl.Links(kind, 0)
		if err != nil {
			return err
		}
		all = append(all, some...)
	}
	there := make(map[int]bool, len(all))
	for _, l := range all {
		there[l.Index] = true
		w.event(rtnl.Event{Link: l})
	}
	w.ports.keep(there)
	w.macs.keep(there)
	w.bridges.keep(there)
	w.routes.keep(there)
	w.rows.rouse()
	w.mirrors.stir()
	return nil
}

func (w *watcher) report(r Report) {
	w.reportMu.Lock()
	defer w.reportMu.Unlock()
	w.Report(r)
}

// did logs the actions of a Manager and reports whether any failed.
func (w *watcher) did(actions []nic.Action, err error) (failed bool) {
	for _, a := range actions {
		r := Report{Text: a.Action, Guest: a.VM, NIC: a.NIC, Interface: a.Interface}
		if a.Error != "" {
			r.Err = errors.New(a.Error)
			failed = true
		}
		if a.Changed || r.Err != nil {
			w.report(r)
		}
	}
	if err != nil {
		w.report(Report{Text: "the state cannot be read", Err: err})
	}
	return failed || err != nil
}

// mended reports a network that was mended, or could not be.
func (w *watcher) mended(m network.Mended) {
	text := "network mended: " + strings.Join(m.What, ", ")
	switch {
	case m.Network == "":
		text = "the networks cannot be compared with their files"
	case m.Err != nil:
		text = "network not mended: " + strings.Join(m.What, ", ")
	}
	w.report(Report{Text: text, Interface: m.Network, Err: m.Err})
}

func (w *watcher) ready() {
	w.readyMu.Lock()
	defer w.readyMu.Unlock()
	if !w.isReady && w.Ready != nil {
		w.Ready()
	}
	w.isReady = true
}

// sleep waits and reports whether ctx was still alive at the end.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// isGone reports whether the object of the action was gone already.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
