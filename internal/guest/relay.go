package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"vmnet/internal/kernel/fdpass"
	"vmnet/libvirt"
	"vmnet/qmp"
)

// relayEvents is how many events of a guest may be queued. A lost event costs a second: see
// [qmp.Conn.Unplug].
const relayEvents = 256

// lastWords bounds the wait for the event that the domain has ended, after an error that its end
// may have caused.
const lastWords = time.Second

// dialThroughLibvirt connects to the monitor of a running domain through libvirt. From then on
// libvirt marks the domain as tainted (custom-monitor). Closing the Conn does not
// close c, which must stay open until then; c's end ends the Conn, and so does the domain's.
func dialThroughLibvirt(ctx context.Context, c *libvirt.Conn, dom libvirt.Domain) (*qmp.Conn, error) {
	events, err := c.Subscribe(ctx, &dom, relayEvents, libvirt.Lifecycle, libvirt.Monitor)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", dom.Name, err)
	}
	conn, err := qmp.Through(ctx, &relay{c, dom, events})
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", dom.Name, err)
	}
	return conn, nil
}

// relay is libvirt as a [qmp.Relay]. libvirt continues with at most five commands that nobody waits
// for any more (max_client_requests in libvirtd.conf), and gives up each of them if QEMU does not
// answer the one before for 30 s. The next attach, detach or reconcile removes what an undo has
// then left in QEMU.
type relay struct {
	conn   *libvirt.Conn
	dom    libvirt.Domain
	events *libvirt.Subscription
}

func (r *relay) Command(ctx context.Context, command string, f *os.File) (answer string, err error) {
	if f == nil {
		answer, err = r.conn.MonitorCommand(ctx, r.dom, command)
	} else {
		var received []*os.File
		answer, received, err = r.conn.MonitorCommandWithFiles(ctx, r.dom, command, f)
		fdpass.CloseAll(received)
	}
	switch {
	case err == nil, errors.Is(err, libvirt.ErrTimeout), errors.Is(err, libvirt.ErrAccessDenied),
		errors.Is(err, libvirt.ErrUnsupported):
		return answer, err
	case r.conn.Err() != nil:
		return "", fmt.Errorf("%w: %w", qmp.ErrClosed, err)
	}
	err = explainStopped(err)
	if !errors.Is(err, qmp.ErrClosed) {
		// "Unable to read from monitor" is what libvirt says first of a QEMU that has ended
		select {
		case <-ctx.Done():
		case <-time.After(lastWords):
		}
	}
	return "", err
}

func (r *relay) Event(ctx context.Context) (qmp.Event, error) {
	for {
		select {
		case <-ctx.Done():
			return qmp.Event{}, fmt.Errorf("%w: %w", qmp.ErrClosed, context.Cause(ctx))
		case e, open := <-r.events.C:
			switch {
			case !open:
				return qmp.Event{}, fmt.Errorf("%w: %w", qmp.ErrClosed, r.conn.Err())
			case e.Kind == libvirt.Lifecycle && (e.Change == libvirt.Stopped || e.Change == libvirt.Crashed):
				return qmp.Event{}, errEnded
			case e.Kind == libvirt.Monitor:
				return monitorEvent(e), nil
			}
		}
	}
}

func monitorEvent(e libvirt.Event) qmp.Event {
	event := qmp.Event{Name: e.Name, Time: e.Time}
	if e.Details != "" {
		event.Data = json.RawMessage(e.Details)
	}
	return event
}

// Close ends the events.
func (r *relay) Close() error {
	r.events.Close()
	return nil
}
