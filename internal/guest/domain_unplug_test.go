package guest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"vmnet/libvirt"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// fakeDomain answers as libvirt does.
type fakeDomain struct {
	requests []error              // what libvirt returns for them; then nil
	has      func() (bool, error) // nil: true
	hangs    string               // the method that waits for ctx
	asked    int
}

func (f *fakeDomain) RequestUnplug(ctx context.Context, _ string) error {
	f.asked++
	if f.hangs == "RequestUnplug" {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if f.asked <= len(f.requests) {
		return f.requests[f.asked-1]
	}
	return nil
}

func (f *fakeDomain) Has(ctx context.Context, _ string) (bool, error) {
	if f.hangs == "Has" {
		<-ctx.Done()
		return false, context.Cause(ctx)
	}
	if f.has == nil {
		return true, context.Cause(ctx)
	}
	return f.has()
}

func (*fakeDomain) Err() error { return libvirt.ErrNoConnection }

func unpluggingOf(f *fakeDomain, sent ...libvirt.Event) *unplugging {
	events := make(chan libvirt.Event, 8)
	for _, e := range sent {
		events <- e
	}
	return &unplugging{domain: f, events: events, nicID: "net0"}
}

func about(kind libvirt.Kind, nicID string) libvirt.Event {
	return libvirt.Event{Kind: kind, Device: nic.LibvirtAlias(nicID)}
}

// TestDomainUnplug: how an unplug ends, by what libvirt answers.
func TestDomainUnplug(t *testing.T) {
	stopped := &libvirt.Error{Code: 55, Message: "domain is not running"}
	busy := &libvirt.Error{Code: 68, Message: "Timed out during operation: cannot acquire state change lock"}
	for name, tc := range map[string]struct {
		domain fakeDomain
		events []libvirt.Event
		want   error
		asked  int
	}{
		"released": {
			fakeDomain{},
			[]libvirt.Event{about(libvirt.DeviceRemoved, "other"), about(libvirt.DeviceRemoved, "net0")},
			nil, 1,
		},
		"refused by the guest": {
			fakeDomain{},
			[]libvirt.Event{about(libvirt.DeviceRemovalFailed, "net0")},
			qmp.ErrGuestRefused, 1,
		},
		"refused by libvirt": {fakeDomain{requests: []error{busy}}, nil, busy, 1},
		"was not there": {
			fakeDomain{
				requests: []error{&libvirt.Error{Message: "no device found"}},
				has:      func() (bool, error) { return false, nil },
			},
			nil, nil, 1,
		},
		"event lost":  {fakeDomain{has: func() (bool, error) { return false, nil }}, nil, nil, 1},
		"not running": {fakeDomain{requests: []error{stopped}}, nil, qmp.ErrClosed, 1},
		"ends": {
			fakeDomain{},
			[]libvirt.Event{{Kind: libvirt.Lifecycle, Change: libvirt.Stopped}},
			qmp.ErrClosed, 1,
		},
		"ended when looked":  {fakeDomain{has: func() (bool, error) { return false, stopped }}, nil, qmp.ErrClosed, 1},
		"refused the repeat": {fakeDomain{requests: []error{nil, busy}}, nil, busy, 2},
		"refuses to say": {
			fakeDomain{requests: []error{nil, stopped}, has: func() (bool, error) { return false, busy }},
			nil, qmp.ErrClosed, 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			waits := 0
			u := unpluggingOf(&tc.domain, tc.events...)
			err := u.run(t.Context(), func(time.Duration) { waits++ })
			if !errors.Is(err, tc.want) || err != nil && tc.want == nil {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if tc.domain.asked != tc.asked || waits != tc.asked-1 {
				t.Errorf("asked %d times and reported %d times, want %d", tc.domain.asked, waits, tc.asked)
			}
		})
	}
}

// TestDomainUnplugEnds: the error of an unplug that ctx has ended is the same at each call that it
// waits for, and an answer that has arrived takes precedence.
func TestDomainUnplugEnds(t *testing.T) {
	interrupt := errors.New("interrupted")
	for name, tc := range map[string]struct {
		domain fakeDomain
		after  time.Duration
		events []libvirt.Event
		want   []error
	}{
		"in a request": {
			fakeDomain{hangs: "RequestUnplug"},
			10 * time.Millisecond,
			nil,
			[]error{qmp.ErrUnplugTimeout, interrupt},
		},
		"between requests": {fakeDomain{}, 10 * time.Millisecond, nil, []error{qmp.ErrUnplugTimeout, interrupt}},
		"while it looks": {
			fakeDomain{hangs: "Has"},
			qmp.UnplugRepeat + 100*time.Millisecond,
			nil,
			[]error{qmp.ErrUnplugTimeout, interrupt},
		},
		"answered": {
			fakeDomain{},
			0,
			[]libvirt.Event{about(libvirt.DeviceRemovalFailed, "net0")},
			[]error{qmp.ErrGuestRefused},
		},
		"released": {fakeDomain{}, 0, []libvirt.Event{about(libvirt.DeviceRemoved, "net0")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if tc.after == 0 {
				cancel(interrupt)
			} else {
				defer time.AfterFunc(tc.after, func() { cancel(interrupt) }).Stop()
			}
			err := unplugError(ctx, unpluggingOf(&tc.domain, tc.events...).run(ctx, func(time.Duration) {}))
			for _, want := range tc.want {
				if !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
			}
			if (err == nil) != (len(tc.want) == 0) ||
				errors.Is(err, qmp.ErrUnplugTimeout) != slices.Contains(tc.want, qmp.ErrUnplugTimeout) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}
