package qmp

import (
	"bytes"
	"errors"
	"fmt"
)

// maxStale bounds what is passed over of a former client's, in bytes: as much as one schema.
const maxStale = maxSchema

// handshake is how far a monitor is ours yet, for the reader of its connection.
//
// Until then QEMU may send what a former client left behind: the reply to a command of that one,
// whose id may be any JSON value or missing, and, before the greeting, events. QEMU answers a
// command whose client has gone to whoever is connected by then (monitor_qmp_dispatch in
// monitor/qmp.c). After the reply to our first command, qmp_capabilities, no such reply can come:
// QEMU runs one command after the other. What did not fit into the socket of a former client it
// forgets (monitor_flush_locked in monitor/monitor.c), so that all of this is whole messages.
type handshake struct {
	greeted bool
	over    bool   // the first command of ours was answered
	stale   int    // bytes that were passed over
	first   []byte // the first of the messages passed over, shortened
}

// passOver reports whether a message is not for us. The greeting comes once, and other messages
// that are for us come after it.
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

// ended is why the connection has ended. A peer that has said something, and no greeting, is no
// QEMU.
func (h *handshake) ended(err error) error {
	if h.greeted || h.first == nil || errors.Is(err, ErrProtocol) {
		return err
	}
	return fmt.Errorf("%w: greeting expected, got %q", ErrProtocol, h.first)
}
