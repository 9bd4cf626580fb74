package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"vmnet/internal/libvirthook/declared"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
)

const (
	callTimeout   = 5 * time.Second // for one batch of calls to libvirt
	firstRedial   = 100 * time.Millisecond
	slowestRedial = 10 * time.Second
	eventBuffer   = 1024 // queued libvirt events; when more are lost, everything is read again
)

// domains holds the connection to libvirt, if there is one.
type domains struct {
	mu   sync.Mutex
	conn *libvirt.Conn
}

func (d *domains) current() *libvirt.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn
}

func (d *domains) set(conn *libvirt.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = conn
}

// followLibvirt keeps a connection open. Without one, the domains' declarations are kept: the
// domains continue, and nothing is attached without libvirt.
func (w *watcher) followLibvirt(ctx context.Context) {
	told := false
	for wait := firstRedial; ctx.Err() == nil; {
		conn, err := w.dial(ctx, w.Dial)
		if err == nil {
			if told {
				w.report(Report{Text: "connected to libvirt"})
			}
			told = false
			start := time.Now()
			err = w.serve(ctx, conn)
			_ = conn.Close()
			if time.Since(start) > slowestRedial {
				wait = firstRedial
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !told {
			w.report(w.withoutLibvirt(err))
			told = true
		}
		w.ready() // without libvirt there is nothing to wait for
		if !sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, slowestRedial)
	}
}

// withoutLibvirt reports that libvirt cannot be reached.
func (w *watcher) withoutLibvirt(err error) Report {
	if w.MayBeAbsent && errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return Report{Text: "libvirt does not run here: its guests are followed once it does"}
	}
	return Report{Text: "libvirt cannot be reached, trying again", Err: err}
}

func (w *watcher) dial(ctx context.Context, dial func(context.Context) (*libvirt.Conn, error)) (*libvirt.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return dial(ctx)
}

// serve follows the domains of one connection until the connection ends.
func (w *watcher) serve(ctx context.Context, conn *libvirt.Conn) error {
	subCtx, cancel := context.WithTimeout(ctx, callTimeout)
	sub, err := conn.Subscribe(subCtx, nil, eventBuffer, libvirt.Lifecycle, libvirt.DeviceAdded, libvirt.DeviceRemoved,
		libvirt.MetadataChange)
	cancel()
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := w.readDomains(ctx, conn); err != nil {
		return err
	}
	w.domains.set(conn)
	defer w.domains.set(nil)
	w.bridges.all()
	w.left, w.coming = newLeavings(), newLeavings()
	w.removeLeft(ctx, everybody) // of guests that ended while vmnet watch did not run
	w.arrived(ctx, everybody)
	w.ready()
	for lost := uint64(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case now := <-w.left.next(time.Now()):
			for _, guest := range w.left.due(now) {
				w.removeLeft(ctx, guest)
			}
		case now := <-w.coming.next(time.Now()):
			for _, guest := range w.coming.due(now) {
				w.arrived(ctx, guest)
			}
		case e, open := <-sub.C:
			if !open {
				return conn.Err()
			}
			w.domainEvent(ctx, conn, e)
		}
		if now := sub.Lost(); now != lost {
			lost = now
			if !sleep(ctx, rereadEvery) {
				return nil
			}
			if err := w.readDomains(ctx, conn); err != nil {
				return err
			}
			w.left.later(everybody, time.Now())
			w.arrived(ctx, everybody)
		}
	}
}

// readDomains reads the declarations of all running domains.
func (w *watcher) readDomains(ctx context.Context, conn *libvirt.Conn) error {
	listCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	running, err := conn.ListDomains(listCtx, libvirt.ListActive)
	if err != nil {
		return err
	}
	w.ports.keepDomains(running)
	for _, dom := range running {
		w.readDomain(ctx, conn, dom)
	}
	return nil
}

func (w *watcher) domainEvent(ctx context.Context, conn *libvirt.Conn, e libvirt.Event) {
	switch {
	case e.Kind == libvirt.Lifecycle && (e.Change == libvirt.Stopped || e.Change == libvirt.Crashed):
		w.ports.declare(e.Domain, nil)
		w.ended(ctx, e.Domain)
	case e.Kind == libvirt.DeviceRemoved && domainxml.AliasNIC(e.Device) != "":
		w.ended(ctx, e.Domain)
	case e.Kind == libvirt.Lifecycle && e.Change == libvirt.Resumed:
		w.arrived(ctx, e.Domain.Name)
	case e.Kind == libvirt.Lifecycle && e.Change == libvirt.Started,
		e.Kind == libvirt.DeviceAdded,
		e.Kind == libvirt.MetadataChange && e.URI == declared.Namespace:
		w.readDomain(ctx, conn, e.Domain)
	}
}

// arrived commits the NICs of a guest that may have arrived from another host. The hook's own
// process does so, too, unless something has ended it. What fails is tried again, after pauses that
// double.
func (w *watcher) arrived(ctx context.Context, guest string) {
	if w.Commit == nil {
		return
	}
	commitCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	done, err := w.Commit(commitCtx, guest)
	for _, res := range done {
		if n := res.NIC; res.Changed {
			w.report(Report{Text: "committed: its guest has arrived", Guest: n.VM, NIC: n.ID, Interface: n.Interface})
		}
	}
	if err == nil {
		w.coming.forget(guest)
	} else if ctx.Err() == nil {
		w.coming.later(guest, time.Now())
		w.report(Report{Text: "not committed", Guest: guest, Err: err})
	}
}

// readDomain reads a domain's declaration, and applies the settings to its taps.
func (w *watcher) readDomain(ctx context.Context, conn *libvirt.Conn, dom libvirt.Domain) {
	callCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	def, err := definition(callCtx, conn, dom)
	switch {
	case ctx.Err() != nil || conn.Err() != nil:
		return
	case err != nil && !isNoDomain(err): // the known declaration is kept
		w.report(Report{Text: "its declaration cannot be read", Guest: dom.Name, Err: err})
		return
	}
	var nics []declared.NIC
	if err == nil && def.ID >= 0 { // an inactive domain has no taps
		nics, err = declared.Ports(def)
	}
	if err != nil && !isNoDomain(err) {
		w.report(Report{Text: "its declaration is invalid", Guest: dom.Name, Err: err})
	}
	w.ports.declare(dom, nics)
	for _, n := range nics {
		if l, err := w.nl.Link(n.Interface.Target); n.Interface.Target != "" && err == nil && l.Master != 0 {
			w.ports.apply(l.Index, l.Name, claim{dom.Name, n.MAC, n.Port, l.Name})
		}
	}
}

func definition(ctx context.Context, conn *libvirt.Conn, dom libvirt.Domain) (*domainxml.Definition, error) {
	text, err := conn.XML(ctx, dom, 0)
	if err != nil {
		return nil, err
	}
	def, err := domainxml.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", dom.Name, err)
	}
	return def, nil
}

func isNoDomain(err error) bool { return errors.Is(err, libvirt.ErrNoDomain) }
