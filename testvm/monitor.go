package testvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A monitor is a connection to QEMU's. It is the least that starting a guest needs: package qmp is
// tested by this package's guests.
type monitor struct {
	conn    *net.UnixConn
	replies *json.Decoder
}

// openMonitor connects to the monitor until ctx ends. Close it.
func (vm *VM) openMonitor(ctx context.Context) (*monitor, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", vm.QMP)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn.(*net.UnixConn), replies: json.NewDecoder(conn)}
	context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err := m.run("qmp_capabilities", nil, nil, nil); err != nil {
		_ = conn.Close()
		return nil, errors.Join(context.Cause(ctx), err)
	}
	return m, nil
}

func (m *monitor) close() { _ = m.conn.Close() }

// run runs a command, which gets a file if f is not nil, and decodes what it returns into reply.
func (m *monitor) run(command string, args map[string]any, f *os.File, reply any) error {
	line, err := json.Marshal(struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	if _, _, err := m.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		var answer struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		err := m.replies.Decode(&answer) // the greeting, events, the answer
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", command, err)
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", command, answer.Error.Desc)
		case answer.Return != nil && reply != nil:
			return json.Unmarshal(answer.Return, reply)
		case answer.Return != nil:
			return nil
		}
	}
}

// monitored waits until the monitor answers a command: unlike the greeting, QEMU answers only once
// all devices exist. The monitor is free again afterwards.
func (vm *VM) monitored(ctx context.Context) error {
	if vm.QMP == "" {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m, err := vm.openMonitor(ctx)
	if err != nil {
		return fmt.Errorf("wait for the monitor's answer: %w", err)
	}
	m.close()
	return nil
}

// migrate stops the guest and writes its state to f. An emulated processor that runs meanwhile now
// and then changes memory that is not written again.
func (vm *VM) migrate(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m, err := vm.openMonitor(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	if err := m.run("stop", nil, nil, nil); err != nil {
		return err
	}
	err = m.run("getfd", map[string]any{"fdname": "state"}, f, nil)
	if err == nil {
		err = m.run("migrate", map[string]any{"uri": "fd:state"}, nil, nil)
	}
	for err == nil {
		var now struct {
			Status string
			Desc   string `json:"error-desc"`
		}
		err = m.run("query-migrate", nil, nil, &now)
		switch now.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("the migration is %s: %s", now.Status, now.Desc)
		}
		time.Sleep(20 * time.Millisecond) // QEMU has an event, but only for who asks for it
	}
	return errors.Join(context.Cause(ctx), err)
}
