package qmp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func deleted(id string) string {
	return fmt.Sprintf(`{"event": "DEVICE_DELETED", "data": {"device": %q, "path": "/machine/peripheral/x"}}`, id)
}

func TestUnplug(t *testing.T) { bothWays(t, unplug) }

func unplug(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	for _, tc := range []struct {
		name  string
		reply func(s *session, r request, nth int) // to the nth device_del
		want  error
		dels  int
	}{
		{"answers", func(s *session, r request, _ int) {
			s.Say(r.Returns("{}"),
				`{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/n/virtio-backend"}}`,
				deleted("other"), deleted("n"))
		}, nil, 1},
		{"event before the reply", func(s *session, r request, _ int) { s.Say(deleted("n"), r.Returns("{}")) }, nil, 1},
		{"was not there", func(s *session, r request, _ int) {
			s.Say(r.Refuses("DeviceNotFound", "Device 'n' not found"))
		}, nil, 1},
		{"first request swallowed", func(s *session, r request, nth int) {
			if s.Say(r.Returns("{}")); nth == 2 {
				s.Say(deleted("n"))
			}
		}, nil, 2},
		{"event lost", func(s *session, r request, nth int) {
			if nth == 1 {
				s.Say(r.Returns("{}"))
			} else {
				s.Say(r.Refuses("DeviceNotFound", "Device 'n' not found"))
			}
		}, nil, 2},
		{"under way", func(s *session, r request, nth int) {
			switch nth {
			case 1:
				s.Say(r.Refuses("GenericError", "Hot-unplug failed: guest is busy (power indicator blinking)"))
			case 2:
				s.Say(r.Refuses("GenericError", "Device n is already in the process of unplug"), deleted("n"))
			}
		}, nil, 2},
		{"refused by QEMU", func(s *session, r request, _ int) {
			s.Say(r.Refuses("GenericError", "Bus 'pcie.0' does not support hotplugging"))
		}, &Error{"device_del", "GenericError", "Bus 'pcie.0' does not support hotplugging"}, 1},
		{"refused by the guest", func(s *session, r request, _ int) {
			s.Say(r.Returns("{}"),
				`{"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": "n", "path": "/machine/peripheral/n"}}`)
		}, ErrGuestRefused, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var log []string
			ended := make(chan struct{})
			c := fakeConn(t, func(s *session) {
				defer close(ended)
				dels := 0
				for r, ok := s.Next(); ok; r, ok = s.Next() {
					log = append(log, r.Execute)
					if r.Execute != "device_del" {
						s.Say(r.Returns("{}"))
						continue
					}
					dels++
					tc.reply(s, r, dels)
				}
			})
			waits := 0
			err := c.Unplug(within(t, 10*time.Second), "n", func(time.Duration) { waits++ })
			var want *Error
			if errors.As(tc.want, &want) {
				if err == nil || !strings.HasSuffix(err.Error(), want.Error()) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
			} else if !errors.Is(err, tc.want) || err != nil && tc.want == nil {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			_ = c.Close()
			<-ended
			if n := len(slices.DeleteFunc(slices.Clone(log), func(s string) bool {
				return s != "device_del"
			})); n != tc.dels {
				t.Errorf("device_del was sent %d times, want %d: %v", n, tc.dels, log)
			}
			if waits != tc.dels-1 {
				t.Errorf("progress was called %d times, want %d", waits, tc.dels-1)
			}
			if deleted := slices.Contains(log, "netdev_del"); deleted != (tc.want == nil) {
				t.Errorf("netdev_del sent: %v", deleted)
			}
		})
	}
}

func TestUnplugEnds(t *testing.T) { bothWays(t, unplugEnds) }

func unplugEnds(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	accept := func(s *session) { answer(s) }
	c := fakeConn(t, accept)
	err := c.Unplug(within(t, 50*time.Millisecond), "n", nil)
	if !errors.Is(err, ErrUnplugTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent guest: %v", err)
	}
	c = fakeConn(t, swallow)
	waits := 0
	err = c.Unplug(within(t, 1500*time.Millisecond), "n", func(time.Duration) { waits++ })
	if !errors.Is(err, ErrUnplugTimeout) || !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "device_del: no reply") || waits != 1 {
		t.Errorf("silent QEMU: %v after %d reports; want the command that has no reply, and one", err, waits)
	}
	c = fakeConn(t, func(s *session) {
		r, _ := s.Next()
		s.Say(r.Returns("{}"))
	})
	if err := c.Unplug(within(t, 20*time.Second), "n", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("QEMU died: %v", err)
	}
}

// TestAnswerAtTheEnd: what the guest has answered by the time that ctx ends is what counts.
func TestAnswerAtTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		event string
		gone  bool
		err   error
	}{
		"released": {"DEVICE_DELETED", true, nil},
		"refused":  {"DEVICE_UNPLUG_GUEST_ERROR", false, ErrGuestRefused},
		"neither":  {"", false, context.Canceled},
	} {
		for range 50 { // of which a select without an order would miss half
			events := make(chan Event, 2)
			events <- Event{Name: "DEVICE_DELETED", Data: []byte(`{"device": "other"}`)}
			if tc.event != "" {
				events <- Event{Name: tc.event, Data: []byte(`{"device": "n"}`)}
			}
			gone, err := awaitGone(ctx, &Subscription{C: events}, "n", nil)
			if gone != tc.gone || !errors.Is(err, tc.err) {
				t.Fatalf("%s: gone %v, %v", name, gone, err)
			}
		}
	}
}

// TestIsUnplugPending: QEMU's texts, by itself and through libvirt.
func TestIsUnplugPending(t *testing.T) {
	for text, want := range map[string]bool{
		"Device n is already in the process of unplug":                                                              true,
		"internal error: unable to execute QEMU command 'device_del': Device n is already in the process of unplug": true,
		"Hot-unplug failed: guest is busy (power indicator blinking)":                                               true,
		"PCI device unplug already in progress for device n":                                                        true,
		"Hot-unplug failed: unsupported by the port device 'p'":                                                     false,
		"device_del not allowed while migrating":                                                                    false,
	} {
		if got := IsUnplugPending(text); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestRequestUnplug(t *testing.T) { bothWays(t, requestUnplug) }

func requestUnplug(t *testing.T, fakeConn func(*testing.T, func(*session)) *Conn) {
	for desc, ok := range map[string]bool{
		"Device n is already in the process of unplug": true,
		"Bus 'pcie.0' does not support hotplugging":    false,
	} {
		c := fakeConn(t, (&guestless{refusals: map[string]string{"device_del": desc}}).serve)
		if err := c.RequestUnplug(within(t, 20*time.Second), "n"); (err == nil) != ok {
			t.Errorf("%s: %v", desc, err)
		}
	}
	gone := fakeConn(t, func(s *session) {
		r, _ := s.Next()
		s.Say(r.Refuses("DeviceNotFound", "Device 'n' not found"))
	})
	if err := gone.RequestUnplug(within(t, 20*time.Second), "n"); err != nil {
		t.Errorf("not there: %v", err)
	}
}
