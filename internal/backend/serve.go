package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/fdpass"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// What an attach without rights and its privileged helper say to each other, one JSON text in
// each message: a wish, an offer with the queues, plugged, and an offer again. Whoever
// closes the socket before has given up, and nothing is left behind.
type (
	// tapRequest asks for a tap on a bridge.
	tapRequest struct {
		VM      string  `json:"vm"`
		NIC     string  `json:"nic"`
		Bridge  string  `json:"bridge"`
		Port    string  `json:"port"` // as brport.Settings writes it
		MAC     string  `json:"mac"`  // the guest's
		Model   string  `json:"model"`
		Queues  int     `json:"queues"`
		MTU     int     `json:"mtu"` // bytes that the guest is told; 0 for none
		Vhost   bool    `json:"vhost"`
		Options string  `json:"options"` // hash of the device's options
		Via     nic.Via `json:"via"`     // ViaMonitor, or empty
	}
	// tapResponse answers; the files with the first one are the queues.
	tapResponse struct {
		Interface string `json:"interface"`
		Error     string `json:"error,omitempty"`
	}
	// tapCommit tells that QEMU has the NIC.
	tapCommit struct {
		Plugged bool `json:"plugged"`
	}
)

// maxMessage bounds a message in bytes.
const maxMessage = 16 << 10

// Serve makes the tap that one attach of another process asks for over sock, hands it over, and
// stays until that has plugged it or given up. allow decides whether the caller may
// have it; it is asked before anything is made, and again when the tap is there.
func (m *Maker) Serve(ctx context.Context, sock *fdpass.Socket, allow func(nic.Spec) error) error {
	s := &service{m: m, sock: sock, allow: allow}
	err := s.serve(ctx)
	if err != nil {
		_ = s.send(tapResponse{Error: err.Error()}) // it may have gone
	}
	return err
}

type service struct {
	m     *Maker
	sock  *fdpass.Socket
	allow func(nic.Spec) error
}

func (s *service) serve(ctx context.Context) error {
	var w tapRequest
	if err := s.receive(&w); err != nil {
		return fmt.Errorf("read what is asked for: %w", err)
	}
	h, err := s.Plan(ctx, w)
	if err != nil {
		return err
	}
	steps := h.HostSteps(0)
	if err := s.m.run(ctx, steps); err != nil {
		return err
	}
	// Our own copies go in any case: the tap then lives as long as QEMU holds it.
	defer h.Close()
	if err := s.allow(h.Spec); err != nil { // others may have been as quick
		return err
	}
	if err := s.send(tapResponse{Interface: h.Device.InterfaceName()}, h.Device.queues()...); err != nil {
		return errors.Join(err, step.Undo(ctx, steps))
	}
	var p tapCommit
	if err := s.receive(&p); err != nil || !p.Plugged {
		return nil // it has given up, and undone its part
	}
	h.Record.Phase = nic.PhasePlugged
	alias, _ := h.Record.Encode()
	if _, err := h.Device.Verify(ctx, 0, alias); err != nil {
		return err
	}
	return s.send(tapResponse{Interface: h.Device.InterfaceName()})
}

// Plan makes the host's half of a wish that its maker may have, and trusts nothing in it.
func (s *service) Plan(ctx context.Context, w tapRequest) (*NIC, error) {
	port, err := brport.Parse(w.Port)
	if err != nil {
		return nil, step.WithStage(nic.ErrInvalid, err)
	}
	mac, err := net.ParseMAC(w.MAC)
	if err != nil {
		return nil, step.WithStage(nic.ErrInvalid, err)
	}
	spec := nic.Spec{
		Target: nic.Target{VM: w.VM}, NIC: w.NIC, Bridge: w.Bridge, Port: port,
		MAC: mac, MTU: w.MTU, Queues: w.Queues, Model: w.Model, Vhost: nic.VhostOff,
	}
	switch {
	case w.Queues < 1 || w.Queues > fdpass.MaxFiles:
		return nil, step.WithStage(nic.ErrInvalid, fmt.Errorf("%d queues: 1 to %d can be handed over", w.Queues, fdpass.MaxFiles))
	case !nic.ValidHash(w.Options):
		return nil, step.WithStage(nic.ErrInvalid, fmt.Errorf("hash %.20q", w.Options))
	case w.Via != "" && w.Via != nic.ViaMonitor:
		return nil, step.WithStage(nic.ErrInvalid, fmt.Errorf("via %.20q: what is handed over here is fds", w.Via))
	}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := s.allow(spec); err != nil {
		return nil, err
	}
	h := s.m.New(spec.WithDefaults(), nic.PhaseAttaching)
	if err := h.Device.Plan(ctx, &h.Record); err != nil {
		return nil, err
	}
	if err := h.Plan(w.Queues); err != nil {
		return nil, err
	}
	// The caller opens vhost-net with its own rights; the rest is only noted.
	h.Record.Vhost, h.Record.Options, h.Record.Via = w.Vhost, w.Options, w.Via
	_, err = h.Record.Encode()
	return h, step.WithStage(nic.ErrInvalid, err)
}

func (s *service) send(o tapResponse, files ...*os.File) error { return send(s.sock, o, files...) }

func (s *service) receive(to any) error {
	files, err := receive(s.sock, to)
	fdpass.CloseAll(files) // none is expected
	return err
}

func send(sock *fdpass.Socket, message any, files ...*os.File) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return sock.Send(text, files...)
}

func receive(sock *fdpass.Socket, to any) ([]*os.File, error) {
	text, files, err := sock.Receive(maxMessage)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err = dec.Decode(to)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one JSON text in a message")
		}
	}
	if err != nil {
		fdpass.CloseAll(files)
		return nil, err
	}
	return files, nil
}
