package goqemu

import (
	"context"
	"encoding/json"

	foreign "github.com/digitalocean/go-qemu/qmp"

	"vmnet/qmp"
)

// eventBuffer is how many events of one stream may wait to be received.
const eventBuffer = 256

// Events delivers all events of QEMU from now on to each caller, until ctx or the Monitor ends, or
// the Conn has ended and the earlier events were received; then the channel is closed. A caller may
// stop receiving at any time: while 256 events wait, further ones are dropped and counted by Lost,
// and no command waits for them.
func (m *Monitor) Events(ctx context.Context) (<-chan foreign.Event, error) {
	if err := m.Connect(); err != nil {
		return nil, err
	}
	s := m.conn.Subscribe(eventBuffer)
	m.mu.Lock()
	m.streams[s] = struct{}{}
	m.mu.Unlock()
	out := make(chan foreign.Event)
	go m.forward(ctx, s, out)
	return out, nil
}

// Lost counts the events that no stream delivered: they came faster than they were received, or
// their data was not an object.
func (m *Monitor) Lost() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	lost := m.lost
	for s := range m.streams {
		lost += s.Lost()
	}
	return lost
}

// forward ends with ctx and the Monitor, whether or not somebody receives.
func (m *Monitor) forward(ctx context.Context, s *qmp.Subscription, out chan<- foreign.Event) {
	defer close(out)
	defer m.leave(s)
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(m.ctx, end)()
	for {
		select {
		case e, open := <-s.C:
			if !open {
				return
			}
			event, ok := convert(e)
			if !ok {
				m.lose(1)
				continue
			}
			select {
			case out <- event:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (m *Monitor) lose(n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost += n
}

func (m *Monitor) leave(s *qmp.Subscription) {
	s.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.streams, s)
	m.lost += s.Lost()
}

func convert(e qmp.Event) (f foreign.Event, ok bool) {
	f.Event = e.Name
	if e.Data != nil && json.Unmarshal(e.Data, &f.Data) != nil {
		return f, false
	}
	f.Timestamp.Seconds, f.Timestamp.Microseconds = -1, -1 // as QEMU writes it without a clock
	if !e.Time.IsZero() {
		f.Timestamp.Seconds, f.Timestamp.Microseconds = e.Time.Unix(), int64(e.Time.Nanosecond())/1000
	}
	return f, true
}
