package qmp

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// scripted answers commands with those texts, the last one of each for ever, and logs them.
func scripted(t *testing.T, log *[]string, answers map[string][]string) *Conn {
	return fakeConn(t, func(s *session) {
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			name := r.Execute
			if action, ok := r.Arguments["reboot"].(string); ok {
				name += " " + action
			}
			*log = append(*log, name)
			all := answers[r.Execute]
			if len(all) == 0 {
				s.Say(r.Returns("{}"))
				continue
			}
			if strings.HasPrefix(all[0], "!") {
				s.Say(r.Refuses("DeviceNotFound", all[0][1:]))
			} else {
				s.Say(r.Returns(all[0]))
			}
			if len(all) > 1 {
				answers[r.Execute] = all[1:]
			}
		}
	})
}

func TestAwaitArrival(t *testing.T) {
	const incoming, paused = `{"status": "inmigrate", "running": false}`, `{"status": "paused", "running": false}`
	for _, c := range []struct {
		name       string
		status     []string
		migrations []string
		state      RunState
		err        string // that it has
	}{
		{"it is there", []string{paused}, nil, StatePaused, ""},
		{"it arrives", []string{incoming, incoming, paused}, []string{`{"status": "active"}`}, StatePaused, ""},
		{"it fails", []string{incoming}, []string{`{}`, `{"status": "failed"}`}, StateIncoming, "has ended as failed"},
		{"it is cancelled", []string{incoming}, []string{`{"status": "cancelled"}`}, StateIncoming, "as cancelled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var log []string
			conn := scripted(t, &log, map[string][]string{"query-status": c.status, "query-migrate": c.migrations})
			state, err := conn.AwaitArrival(t.Context())
			if state != c.state || (err == nil) != (c.err == "") ||
				err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s, %v; want %s, %q", state, err, c.state, c.err)
			}
		})
	}
}

// TestAwaitArrivalByItsEvent: QEMU is asked nothing between the event of the arrival and the
// return.
func TestAwaitArrivalByItsEvent(t *testing.T) {
	c := fakeConn(t, func(s *session) {
		asked := 0
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			if r.Execute == "query-status" {
				asked++
			}
			if asked > 1 {
				continue // a busy QEMU
			}
			s.Say(r.Returns(`{"status": "inmigrate"}`))
			if r.Execute == "query-migrate" {
				s.Say(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}`)
			}
		}
	})
	if state, err := c.AwaitArrival(t.Context()); state != StateRunning || err != nil {
		t.Errorf("%s, %v", state, err)
	}
}

// TestAwaitArrivalEnds: the wait ends with its context, and with QEMU.
func TestAwaitArrivalEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("given up")
	c := fakeConn(t, func(s *session) {
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			if r.Execute == "query-migrate" {
				cancel(why)
			}
			s.Say(r.Returns(`{"status": "inmigrate"}`))
		}
	})
	if _, err := c.AwaitArrival(ctx); !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	c = fakeConn(t, func(s *session) {
		for r, ok := s.Next(); ok && r.Execute != "query-migrate"; r, ok = s.Next() {
			s.Say(r.Returns(`{"status": "inmigrate"}`))
		}
	})
	if _, err := c.AwaitArrival(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestUnplugByReset: the machine is reset only if the device stays and no guest is arriving, and
// QEMU does not end by that.
func TestUnplugByReset(t *testing.T) {
	release := []string{"netdev_del", "closefd", "closefd"}
	reset := []string{"set-action reset", "system_reset", "set-action shutdown"}
	for _, c := range []struct {
		name    string
		dels    []string
		migrate string
		ends    bool
		want    error
		log     []string
	}{
		{
			"gone",
			[]string{"!Device 'n' not found"},
			"{}", true, nil,
			slices.Concat([]string{"device_del", "device_del"}, release),
		},
		{
			"reset",
			[]string{"{}", "!Device 'n' not found"},
			"{}", false, nil,
			slices.Concat([]string{"device_del", "query-migrate", "system_reset", "device_del"}, release),
		},
		{
			"that would end it",
			[]string{"{}", "!Device 'n' not found"},
			`{"status": "setup"}`, true, nil,
			slices.Concat([]string{"device_del", "query-migrate"}, reset, []string{"device_del"}, release),
		},
		{
			"arriving",
			[]string{"{}"},
			`{"status": "active"}`, false, ErrArriving,
			[]string{"device_del", "query-migrate"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var log []string
			conn := scripted(t, &log, map[string][]string{"device_del": c.dels, "query-migrate": {c.migrate}})
			err := conn.UnplugByReset(t.Context(), "n", c.ends, nil)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || !slices.Equal(log, c.log) {
				t.Errorf("%v, want %v: %q, want %q", err, c.want, log, c.log)
			}
		})
	}
}
