package qmp

import (
	"bytes"
	"errors"
	"fmt"
)

// maxStale bounds how many bytes for a former client are skipped: as much as one schema.
const maxStale = maxSchema

// handshake tracks for a connection's reader whether messages are for this client yet.
//
// At first QEMU may send what a former client has left behind: the reply to a command of that
// client, whose id may be any JSON value or missing, and, before the greeting, events. QEMU sends
// the reply to a command whose client has gone to the client that is connected by then
// (monitor_qmp_dispatch in monitor/qmp.c). After the reply to the first command of this client,
// qmp_capabilities, there can be no such reply: QEMU runs one command after the other. QEMU drops
// what did not fit into the socket of a former client (monitor_flush_locked in monitor/monitor.c),
// so all of this is whole messages.
type handshake struct {
	greeted bool
	over    bool   // this client's first command was answered
	stale   int    // bytes that were skipped
	first   []byte // the first skipped message, shortened
}

// passOver reports whether a message is not for this client. The greeting comes once, before all
// other messages for this client.
func (h *handshake) passOver(m *message, text []byte, ours bool) (pass bool, err error) {
	switch {
	case m.QMP != nil && h.greeted:
		return false, fmt.Errorf("%w: a second greeting: %q", ErrProtocol, cut(text))
	case m.QMP != nil:
		h.greeted = true
		return false, nil
	case h.greeted && (h.over || ours || m.Event != ""):
		h.over = h.over || ours
		return false, nil
	}
	if h.first == nil {
		h.first = bytes.Clone(cut(text))
	}
	if h.stale += len(text); h.stale > maxStale {
		return false, fmt.Errorf("%w: more than %d bytes that are not for this client, the first %q",
			ErrProtocol, maxStale, h.first)
	}
	return true, nil
}

// ended returns why the connection has ended. A peer that has sent something, but no greeting, is
// not a QEMU.
func (h *handshake) ended(err error) error {
	if h.greeted || h.first == nil || errors.Is(err, ErrProtocol) {
		return err
	}
	return fmt.Errorf("%w: greeting expected, got %q", ErrProtocol, h.first)
}
