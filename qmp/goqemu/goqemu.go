package goqemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	foreign "github.com/digitalocean/go-qemu/qmp"

	"vmnet/qmp"
)

// errDisconnected is why the context of a Monitor has ended after Disconnect.
var errDisconnected = fmt.Errorf("%w: the Monitor was disconnected", qmp.ErrClosed)

// Monitor is a [qmp.Conn] for users of go-qemu, with one context for all that it does, since the
// methods of go-qemu take none. A Monitor is cheap: a call that needs a deadline of its own can
// have a Monitor of its own. Several may share a Conn, and several goroutines a Monitor. Disconnect
// it.
type Monitor struct {
	conn *qmp.Conn
	ctx  context.Context
	end  context.CancelCauseFunc

	mu      sync.Mutex
	streams map[*qmp.Subscription]struct{}
	lost    uint64 // by streams that have ended, and events that could not be decoded
}

var _ foreign.Monitor = (*Monitor)(nil)

// New makes a Monitor of c. Its commands and event streams end with ctx. c stays the caller's, who
// closes it.
func New(ctx context.Context, c *qmp.Conn) *Monitor {
	m := &Monitor{conn: c, streams: map[*qmp.Subscription]struct{}{}}
	m.ctx, m.end = context.WithCancelCause(ctx)
	return m
}

// Connect reports whether the Monitor can be used, and does nothing else: a [qmp.Conn] is connected
// and negotiated already. Its error matches [qmp.ErrClosed] after Disconnect, is the one of
// [qmp.Conn.Err] once the Conn has ended, and the cause of the context once that has ended.
func (m *Monitor) Connect() error {
	if err := m.conn.Err(); err != nil {
		return err
	}
	return context.Cause(m.ctx)
}

// Disconnect ends the Monitor: its event streams, its later commands, and those that are running,
// of which QEMU may or may not run what it was sent. The Conn stays open. Disconnect may be called
// more than once. It returns nil.
func (m *Monitor) Disconnect() error {
	m.end(errDisconnected)
	return nil
}

// Run executes a command: a JSON object with the member execute, and perhaps arguments and id. It
// returns the reply as QEMU has written it, an object with the member return, and with the id of
// the command. That id may be any value. QEMU does not see it, since the Conn gives each command
// its own.
//
// A refusal by QEMU is a [*qmp.Error]. The other errors, and how long a reply may be, are those of
// [qmp.Conn.Execute]. Commands of several goroutines do not wait for each other.
func (m *Monitor) Run(command []byte) ([]byte, error) {
	return m.run(command, m.conn.Execute)
}

// RunWithFile is Run with a copy of file sent along (SCM_RIGHTS, unix(7)), as getfd and add-fd need
// it. The file stays the caller's, who may close it once RunWithFile has returned; with a nil file
// it is Run. [qmp.Conn.ExecuteFD] has the details. The SocketMonitor of go-qemu has a method of
// this signature; this one also works through a [qmp.Relay].
func (m *Monitor) RunWithFile(command []byte, file *os.File) ([]byte, error) {
	if file == nil {
		return m.Run(command)
	}
	return m.run(command, func(ctx context.Context, name string, args, reply any) error {
		return m.conn.ExecuteFD(ctx, name, args, file, reply)
	})
}

// execute is Execute or ExecuteFD of a Conn.
type execute = func(ctx context.Context, name string, args, reply any) error

func (m *Monitor) run(command []byte, execute execute) ([]byte, error) {
	r, err := parse(command)
	if err != nil {
		return nil, fmt.Errorf("not a command: %.120q: %w", command, err)
	}
	var args any // nil, unlike a nil json.RawMessage, is left out
	if r.Arguments != nil {
		args = r.Arguments
	}
	var value json.RawMessage
	if err := execute(m.ctx, r.Execute, args, &value); err != nil {
		return nil, err
	}
	reply := append([]byte(`{"return": `), value...)
	if r.ID != nil {
		reply = append(append(reply, `, "id": `...), r.ID...)
	}
	return append(reply, '}'), nil
}

// request is a command as users of go-qemu write it.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// parse refuses what QEMU would not receive as it was written.
func parse(command []byte) (r request, err error) {
	d := json.NewDecoder(bytes.NewReader(command))
	d.DisallowUnknownFields()
	switch err := d.Decode(&r); {
	case err != nil:
		return r, err
	case r.Execute == "":
		return r, errors.New("it has no member execute")
	case len(bytes.TrimSpace(command[d.InputOffset():])) > 0:
		return r, errors.New("something follows the object")
	}
	return r, nil
}
