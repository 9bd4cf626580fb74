package goqemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	foreign "github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"
	"github.com/google/go-cmp/cmp"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/qmp"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// fake is a QEMU behind a qmp.Relay. Its answers to all but query-version are answer's.
type fake struct {
	answer func(ctx context.Context, command string, f *os.File) (string, error)
	events chan qmp.Event
}

func (f *fake) Command(ctx context.Context, command string, file *os.File) (string, error) {
	if command == `{"execute":"query-version"}` {
		return `{"return": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian"}}`, nil
	}
	return f.answer(ctx, command, file)
}

func (f *fake) Event(ctx context.Context) (qmp.Event, error) {
	select {
	case e, open := <-f.events:
		if open {
			return e, nil
		}
	case <-ctx.Done():
	}
	return qmp.Event{}, fmt.Errorf("%w: QEMU has ended", qmp.ErrClosed)
}

func (f *fake) Close() error { return nil }

// connect makes a Conn to a QEMU that answers so.
func connect(t *testing.T,
	answer func(ctx context.Context, command string, f *os.File) (string, error),
) (*qmp.Conn, *fake) {
	t.Helper()
	f := &fake{answer: answer, events: make(chan qmp.Event)}
	c, err := qmp.Through(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, f
}

// monitor makes a Monitor that ends with the test.
func monitor(t *testing.T,
	answer func(ctx context.Context, command string, f *os.File) (string, error),
) (*Monitor, *fake) {
	t.Helper()
	c, f := connect(t, answer)
	m := New(t.Context(), c)
	t.Cleanup(func() { _ = m.Disconnect() })
	return m, f
}

// always answers each command with the same text.
func always(answer string) func(context.Context, string, *os.File) (string, error) {
	return func(context.Context, string, *os.File) (string, error) { return answer, nil }
}

func TestRun(t *testing.T) {
	large := `"` + strings.Repeat("<&\u2028é", 100_000) + `"`
	for name, tc := range map[string]struct{ command, sent, answer, reply string }{
		"no arguments": {`{"execute": "stop"}`, `{"execute":"stop"}`, `{"return": {}}`, `{"return": {}}`},
		"arguments": {
			` {"arguments": {"a": [1, 2.50]}, "execute": "x"}` + "\r\n",
			`{"execute":"x","arguments":{"a":[1,2.50]}}`, `{"return": {}}`, `{"return": {}}`,
		},
		"empty arguments": {
			`{"execute": "x", "arguments": {}}`, `{"execute":"x","arguments":{}}`,
			`{"return": {}}`, `{"return": {}}`,
		},
		"null arguments": {
			`{"execute": "x", "arguments": null}`, `{"execute":"x","arguments":null}`,
			`{"return": {}}`, `{"return": {}}`,
		},
		"an id": {
			`{"execute": "x", "id": {"a": 1}}`, `{"execute":"x"}`,
			`{"return": [1,  2], "id": "libvirt-7"}`, `{"return": [1,  2], "id": {"a": 1}}`,
		},
		"null": {`{"execute": "x"}`, `{"execute":"x"}`, `{"return": null}`, `{"return": null}`},
		"a large reply": {
			`{"execute": "x"}`, `{"execute":"x"}`, `{"return": ` + large + `}`,
			`{"return": ` + large + `}`,
		},
	} {
		var sent string
		m, _ := monitor(t, func(_ context.Context, command string, f *os.File) (string, error) {
			if sent = command; f != nil {
				t.Errorf("%s: a file was sent", name)
			}
			return tc.answer, nil
		})
		if err := m.Connect(); err != nil {
			t.Errorf("%s: connect: %v", name, err)
		}
		reply, err := m.Run([]byte(tc.command))
		if sent != tc.sent || string(reply) != tc.reply || err != nil {
			t.Errorf("%s: sent %q, reply %.200q, %v", name, sent, reply, err)
		}
	}
}

func TestRunRefusesWhatIsNoCommand(t *testing.T) {
	m, _ := monitor(t, func(_ context.Context, command string, _ *os.File) (string, error) {
		t.Errorf("sent %s", command)
		return `{"return": {}}`, nil
	})
	for command, want := range map[string]string{
		``:                                  "EOF",
		`{"execute": "x"`:                   "unexpected EOF",
		`["execute"]`:                       "cannot unmarshal array",
		`{}`:                                "no member execute",
		`{"execute": "x"} {"execute": "y"}`: "something follows",
		`{"execute": "x"}]`:                 "something follows",
		`{"exec-oob": "x"}`:                 `unknown field "exec-oob"`,
		`{"execute": "x", "control": {}}`:   `unknown field "control"`,
		`{"execute": ` + strings.Repeat("x", 1e6): "invalid character",
	} {
		reply, err := m.Run([]byte(command))
		if err == nil || !strings.Contains(err.Error(), want) || reply != nil || len(err.Error()) > 500 {
			t.Errorf("%.100s: %q, %v; want %q", command, reply, err, want)
		}
	}
}

func TestErrorsKeepTheirClass(t *testing.T) {
	m, _ := monitor(t, always(`{"error": {"class": "DeviceNotFound", "desc": "Device 'n' not found"}}`))
	err := raw.NewMonitor(m).DeviceDel("n")
	var refused *qmp.Error
	if !errors.As(err, &refused) || refused.Command != "device_del" || !errors.Is(err, qmp.ErrDeviceNotFound) {
		t.Errorf("got %#v", err)
	}
}

// TestContextEndsCommands: a Monitor's commands end with its context and with Disconnect, and the
// Conn goes on.
func TestContextEndsCommands(t *testing.T) {
	answered := make(chan struct{})
	c, _ := connect(t, func(ctx context.Context, command string, f *os.File) (string, error) {
		select {
		case <-answered:
			return `{"return": {}}`, nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
	stop := []byte(`{"execute": "stop"}`)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	m := New(short, c)
	defer m.Disconnect()
	if _, err := m.Run(stop); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after its deadline: %v", err)
	}
	if err := m.Connect(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connect after its deadline: %v", err)
	}

	m = New(t.Context(), c)
	ended := make(chan error, 1)
	go func() {
		_, err := m.Run(stop)
		ended <- err
	}()
	if err := errors.Join(m.Disconnect(), m.Disconnect()); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("disconnected: %v", err)
	}
	if _, err := m.Run(stop); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("after it was disconnected: %v", err)
	}
	if _, err := m.Events(t.Context()); !errors.Is(err, qmp.ErrClosed) || !errors.Is(m.Connect(), qmp.ErrClosed) {
		t.Errorf("events after it was disconnected: %v", err)
	}

	close(answered)
	other := New(t.Context(), c)
	defer other.Disconnect()
	if _, err := other.Run(stop); err != nil {
		t.Errorf("another Monitor of the Conn: %v", err)
	}
}

// TestBrokenQEMU: what a QEMU does wrong ends the Conn, its Monitors and their streams.
func TestBrokenQEMU(t *testing.T) {
	for name, tc := range map[string]struct {
		answer string
		err    error
		want   error
	}{
		"hangs up":       {"", fmt.Errorf("%w: QEMU has ended", qmp.ErrClosed), qmp.ErrClosed},
		"no JSON":        {"SSH-2.0", nil, qmp.ErrProtocol},
		"half a reply":   {`{"return": {`, nil, qmp.ErrProtocol},
		"neither":        {`{"id": 1}`, nil, qmp.ErrProtocol},
		"endless answer": {`{"return": "` + strings.Repeat("x", 2<<20) + `"}`, nil, qmp.ErrProtocol},
	} {
		m, _ := monitor(t, func(context.Context, string, *os.File) (string, error) { return tc.answer, tc.err })
		events, err := m.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if reply, err := m.Run([]byte(`{"execute": "x"}`)); !errors.Is(err, tc.want) || reply != nil {
				t.Errorf("%s: %q, %v", name, reply, err)
			}
		}
		if err := m.Connect(); !errors.Is(err, tc.want) {
			t.Errorf("%s: connect: %v", name, err)
		}
		if _, err := m.Events(t.Context()); !errors.Is(err, tc.want) {
			t.Errorf("%s: events: %v", name, err)
		}
		if e, open := <-events; open {
			t.Errorf("%s: event %+v", name, e)
		}
	}
}

func TestEvents(t *testing.T) {
	m, f := monitor(t, always(`{"return": {}}`))
	leaving, leave := context.WithCancel(t.Context())
	one, err1 := m.Events(t.Context())
	two, err2 := m.Events(leaving)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	f.events <- qmp.Event{Name: "STOP"}
	f.events <- qmp.Event{Name: "JOB", Data: []byte(`7`)} // no object
	f.events <- qmp.Event{
		Name: "DEVICE_DELETED", Data: []byte(`{"device": "n", "path": "/n"}`),
		Time: time.Unix(5, 7000),
	}

	var stop, deleted foreign.Event
	stop.Event, stop.Timestamp.Seconds, stop.Timestamp.Microseconds = "STOP", -1, -1
	deleted.Event, deleted.Data = "DEVICE_DELETED", map[string]any{"device": "n", "path": "/n"}
	deleted.Timestamp.Seconds, deleted.Timestamp.Microseconds = 5, 7
	for _, stream := range []<-chan foreign.Event{one, two} {
		for _, want := range []foreign.Event{stop, deleted} {
			if diff := cmp.Diff(want, <-stream); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	}
	if lost := m.Lost(); lost != 2 {
		t.Errorf("%d events are lost, want that without an object, by each stream", lost)
	}

	leave()
	if _, open := <-two; open {
		t.Error("a stream outlives its context")
	}
	f.events <- qmp.Event{Name: "RESUME"}
	if e := <-one; e.Event != "RESUME" {
		t.Errorf("event %+v", e)
	}
	close(f.events)
	if _, open := <-one; open {
		t.Error("a stream outlives the Conn")
	}
}

// TestNobodyReceives: commands are answered, what is lost is counted, and Disconnect ends it all.
func TestNobodyReceives(t *testing.T) {
	m, f := monitor(t, always(`{"return": {}}`))
	events, err := m.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const sent = 2 * eventBuffer
	for range sent {
		f.events <- qmp.Event{Name: "NIC_RX_FILTER_CHANGED", Data: []byte(`{"name": "n"}`)}
	}
	if _, err := m.Run([]byte(`{"execute": "x"}`)); err != nil {
		t.Error(err)
	}
	// One may be under way to the receiver, and one to the Conn's reader.
	nstest.Eventually(t, 10*time.Second, "the losses", func() bool { return m.Lost() >= sent-eventBuffer-1 })
	if err := m.Disconnect(); err != nil {
		t.Error(err)
	}
	for range events {
	}
	if lost := m.Lost(); lost > sent-eventBuffer {
		t.Errorf("%d of %d events are lost, though %d may wait", lost, sent, eventBuffer)
	}
}

func TestFiles(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	var received *os.File
	m, _ := monitor(t, func(_ context.Context, command string, f *os.File) (string, error) {
		if f != nil {
			if _, err := f.WriteString(command); err != nil {
				t.Error(err)
			}
		}
		received = f
		return `{"return": {}}`, nil
	})
	const getfd = `{"execute":"getfd","arguments":{"fdname":"vmnet-q0"}}`
	if _, err := m.RunWithFile([]byte(getfd), write); err != nil || received == nil || received == write {
		t.Errorf("passed %v, a copy of %v: %v", received, write, err)
	}
	if err := write.Close(); err != nil {
		t.Errorf("the file was closed: %v", err)
	}
	if got, err := io.ReadAll(read); string(got) != getfd || err != nil { // and the copy is closed too
		t.Errorf("QEMU wrote %q: %v", got, err)
	}
	if _, err := m.RunWithFile([]byte(getfd), write); err == nil {
		t.Error("a closed file was sent")
	}
	if _, err := m.RunWithFile([]byte(`{"execute":"stop"}`), nil); err != nil || received != nil {
		t.Errorf("no file: passed %v, %v", received, err)
	}
	if _, err := m.RunWithFile([]byte(`{"execute":`), write); err == nil {
		t.Error("half a command was sent")
	}
}

func TestManyGoroutines(t *testing.T) {
	m, _ := monitor(t, func(_ context.Context, command string, _ *os.File) (string, error) {
		var c struct{ Arguments json.RawMessage }
		err := json.Unmarshal([]byte(command), &c)
		return `{"return": ` + string(c.Arguments) + `}`, err
	})
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			arguments := fmt.Sprintf(`{"n":%d}`, i)
			reply, err := m.Run([]byte(`{"execute": "echo", "arguments": ` + arguments + `}`))
			if want := `{"return": ` + arguments + `}`; string(reply) != want || err != nil {
				t.Errorf("got %s, %v; want %s", reply, err, want)
			}
		})
	}
	all.Wait()
}
