package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portrate"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/fdpass"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// An attach without privilege and its privileged helper exchange one JSON text in each message: a
// request, a response with the queues, a commit, and a response again. If one of them closes the
// socket earlier it has given up, and nothing is left behind.
type (
	// tapRequest asks for a tap on a bridge.
	tapRequest struct {
		VM      string       `json:"vm"`
		NIC     string       `json:"nic"`
		Bridge  string       `json:"bridge"` // or Network
		Network string       `json:"network,omitempty"`
		Routed  string       `json:"routed,omitempty"` // the uplink
		IP      []netip.Addr `json:"ip,omitempty"`     // the guest's own addresses
		Port    string       `json:"port"`             // as brport.Settings writes it
		// which of the guest's frames are dropped
		Security nic.Security    `json:"security"`
		AllowIn  inbound.Rules   `json:"allow_in"` // what may come in to the guest
		Rates    portrate.Config `json:"rates"`
		MAC      string          `json:"mac"` // the guest's
		Model    string          `json:"model"`
		Queues   int             `json:"queues"`
		MTU      int             `json:"mtu"` // in bytes, that the guest sees; 0 for none
		Vhost    bool            `json:"vhost"`
		Options  string          `json:"options"` // hash of the device's options
		Via      nic.Via         `json:"via"`     // ViaMonitor, or empty
		LinkDown bool            `json:"link_down,omitempty"`
		IfaceID  string          `json:"iface_id,omitempty"` // on a bridge of Open vSwitch
		OVSDB    string          `json:"ovsdb,omitempty"`
	}
	// tapResponse answers; the files with the first one are the queues.
	tapResponse struct {
		Interface string `json:"interface"`
		Error     string `json:"error,omitempty"`
	}
	// tapCommit says that QEMU has the NIC.
	tapCommit struct {
		Plugged bool `json:"plugged"`
	}
)

// maxMessage bounds a message in bytes.
const maxMessage = 16 << 10

func send(sock *fdpass.Socket, message any, files ...*os.File) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return sock.Send(text, files...)
}

// receive decodes one message. The files that came with it are the caller's.
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

// helperTap is a tap that a privileged helper makes for a caller without privilege. The
// caller does the rest itself, such as talking to the guest's monitor.
type helperTap struct {
	placedTap
	cmd    *exec.Cmd
	stderr head
	sock   *fdpass.Socket
}

func (s *helperTap) plan(ctx context.Context, r *nic.Record) (Interface, error) {
	if l := s.spec.Lower; l != nil {
		return Interface{},
			fmt.Errorf(
				"only root makes a %s while the guest runs (run vmnet as root, or start the guest by qemu-netup --%s %s)",
				l.Kind, l.Kind, l.Device)
	}
	return s.placedTap.plan(ctx, r)
}

func (s *helperTap) steps(w making) []step.Step {
	return []step.Step{{
		Name: "helper",
		Text: fmt.Sprintf("%s --attach: it makes tap %s on %s%s, queues: %d",
			s.m.HelperPath, s.name, w.record.Source, portText(s.spec.Port), w.record.Queues),
		Do: func(ctx context.Context) error { return s.ask(ctx, w.record) },
		Undo: func(ctx context.Context) error {
			err := s.close()
			s.end()
			if s.link == nil {
				return err
			}
			return errors.Join(err, s.m.WaitGoneFor(ctx, &inventory.Device{Link: s.link}, UndoWait))
		},
	}}
}

// ask starts the helper and gets the queues from it.
func (s *helperTap) ask(ctx context.Context, r nic.Record) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	bridge, uplink := r.Source, ""
	switch {
	case r.Network != "":
		bridge = ""
	case r.Type == nic.TypeRouted:
		bridge, uplink = "", r.Source
	}
	err := send(s.sock, tapRequest{
		VM: r.VM, NIC: r.NIC, Bridge: bridge, Network: r.Network, Routed: uplink, IP: r.IP, Port: r.Port,
		MAC: r.MAC.String(), Security: r.Security, AllowIn: r.AllowIn, Rates: r.Rates,
		Model: r.Model, Queues: r.Queues, MTU: r.MTU, Vhost: r.Vhost, Options: r.Options, Via: r.Via,
		LinkDown: r.LinkDown, IfaceID: r.IfaceID, OVSDB: r.OVSDB,
	})
	if err != nil {
		return s.explain(err)
	}
	var o tapResponse
	if s.files.Queues, err = s.answer(&o); err != nil {
		return err
	}
	if n := len(s.files.Queues); n != r.Queues {
		return fmt.Errorf("%s handed over %d queues of %d", s.m.HelperPath, n, r.Queues)
	}
	s.link, err = s.m.NL.Link(o.Interface)
	return err
}

// start runs the helper. It ends when its socket is closed.
func (s *helperTap) start(ctx context.Context) error {
	sock, theirs, err := fdpass.Pair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	s.sock = sock
	const inherited = 3 // the first of ExtraFiles
	s.cmd = exec.CommandContext(ctx, s.m.HelperPath, "--attach", fmt.Sprintf("--fd=%d", inherited))
	s.cmd.ExtraFiles = []*os.File{theirs}
	s.cmd.Stderr = &s.stderr
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return fmt.Errorf(
			"%w (attaching needs CAP_NET_ADMIN: run as root, or install qemu-netup setuid root; see vmnet doctor)", err)
	}
	return nil
}

// answer receives a response. The files are the caller's.
func (s *helperTap) answer(o *tapResponse) ([]*os.File, error) {
	files, err := receive(s.sock, o)
	if err != nil {
		return nil, s.explain(err)
	}
	if o.Error != "" {
		fdpass.CloseAll(files)
		return nil, errors.New(o.Error)
	}
	return files, nil
}

// explain adds what the helper has printed, or its exit status if it ended without a response.
func (s *helperTap) explain(err error) error {
	if waitErr := s.wait(); waitErr != nil && errors.Is(err, io.EOF) {
		err = waitErr
	}
	if text := strings.TrimSpace(string(s.stderr)); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return fmt.Errorf("%s: %w", s.m.HelperPath, err)
}

// head keeps the start of what is written to it.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	const most = 4096
	*h = append(*h, p[:min(len(p), most-len(*h))]...)
	return len(p), nil
}

// verify has the helper set the final alias.
func (s *helperTap) verify(context.Context, making) (*inventory.Device, error) {
	defer s.end()
	if err := send(s.sock, tapCommit{Plugged: true}); err != nil {
		return nil, s.explain(err)
	}
	var o tapResponse
	files, err := s.answer(&o)
	fdpass.CloseAll(files)
	if err != nil {
		return nil, err
	}
	l, err := s.m.NL.LinkByIndex(s.link.Index)
	if err != nil {
		return nil, err
	}
	dev := &inventory.Device{Link: l}
	if on := s.master(); on != nil {
		dev.MasterName = on.Name
	}
	return dev, nil
}

// close closes the queues. The helper has its own until end.
func (s *helperTap) close() error {
	fdpass.CloseAll(s.files.Queues)
	s.files.Queues = nil
	return nil
}

// end closes the helper's socket and waits until the helper has ended.
func (s *helperTap) end() {
	if s.sock != nil {
		_ = s.sock.Close()
		s.sock = nil
	}
	_ = s.wait() // its responses have said what went wrong
}

func (s *helperTap) wait() error {
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Wait()
	s.cmd = nil
	return err
}

// Serve makes the tap that one attach of another process requests over sock, hands it over, and
// stays until that process has plugged it or given up. allow decides whether the caller may have
// it: it is called before anything is made, and again when the tap is there.
func (m *Maker) Serve(ctx context.Context, sock *fdpass.Socket, allow func(nic.Spec) error) error {
	s := &service{m: m, sock: sock, allow: allow}
	err := s.serve(ctx)
	if err != nil {
		_ = s.send(tapResponse{Error: err.Error()}) // the caller may have ended
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
		return fmt.Errorf("read the request: %w", err)
	}
	h, err := s.plan(ctx, w)
	if err != nil {
		return err
	}
	steps, err := h.HostSteps(0)
	if err != nil {
		return err
	}
	if err := s.m.Run.Do(ctx, steps); err != nil {
		return err
	}
	// The files here are closed in any case: the tap then lives as long as QEMU holds it.
	defer h.Close()
	if err := s.allow(h.Spec); err != nil { // others may have taken the rest of the quota
		return err
	}
	if err := s.send(tapResponse{Interface: h.Interface.Name}, h.Files.Queues...); err != nil {
		return errors.Join(err, step.Undo(ctx, steps))
	}
	var p tapCommit
	if err := s.receive(&p); err != nil || !p.Plugged {
		return s.givenUp(ctx, h) // the caller has undone its part
	}
	if _, err := h.Verify(ctx); err != nil {
		return err
	}
	return s.send(tapResponse{Interface: h.Interface.Name})
}

// givenUp closes the files of a NIC that the caller does not want, and removes what its tap leaves.
func (s *service) givenUp(ctx context.Context, h *NIC) error {
	if !h.Record.LeavesTraces() {
		return nil
	}
	err := h.Close()
	if l, linkErr := s.m.NL.Link(h.Interface.Name); linkErr == nil {
		err = errors.Join(err, s.m.WaitGoneFor(ctx, &inventory.Device{Link: l}, UndoWait))
	}
	return errors.Join(err, s.m.TidyHost(ctx))
}

// plan plans the NIC of a request that its sender may make, and trusts nothing in it.
func (s *service) plan(ctx context.Context, w tapRequest) (*NIC, error) {
	spec, err := w.spec()
	if err != nil {
		return nil, err
	}
	if err := s.allow(spec); err != nil {
		return nil, err
	}
	h := s.m.New(spec.WithDefaults(), nic.PhaseAttaching)
	if err := h.PlanInterface(ctx); err != nil {
		return nil, err
	}
	if err := h.PlanDevice(w.Queues); err != nil {
		return nil, err
	}
	// The caller opens vhost-net with its own privileges; the record only notes the rest.
	h.Record.Vhost, h.Record.Options, h.Record.Via = w.Vhost, w.Options, w.Via
	return h, nil
}

// spec returns what a request asks for, checked.
func (w tapRequest) spec() (nic.Spec, error) {
	port, err := brport.Parse(w.Port)
	if err != nil {
		return nic.Spec{}, step.WithStage(nic.ErrInvalid, err)
	}
	mac, err := net.ParseMAC(w.MAC)
	switch {
	case err != nil:
	case w.Queues < 1 || w.Queues > fdpass.MaxFiles:
		err = fmt.Errorf("%d queues: 1 to %d can be handed over", w.Queues, fdpass.MaxFiles)
	case !nic.ValidHash(w.Options):
		err = fmt.Errorf("%.20q is not a hash of options", w.Options)
	case w.Via != "" && w.Via != nic.ViaMonitor:
		err = fmt.Errorf("via %.20q: a helper hands over files, as via %s", w.Via, nic.ViaMonitor)
	}
	if err != nil {
		return nic.Spec{}, step.WithStage(nic.ErrInvalid, err)
	}
	spec := nic.Spec{
		Target: nic.Target{VM: w.VM}, NIC: w.NIC, Bridge: w.Bridge, Network: w.Network, Routed: w.Routed,
		IP: w.IP, Port: port, Security: w.Security, AllowIn: w.AllowIn, Rates: w.Rates,
		MAC: mac, MTU: w.MTU, Queues: w.Queues, Model: w.Model, Vhost: nic.VhostOff,
		LinkDown: w.LinkDown, IfaceID: w.IfaceID, OVSDB: w.OVSDB,
	}
	return spec, spec.Validate()
}

func (s *service) send(o tapResponse, files ...*os.File) error { return send(s.sock, o, files...) }

func (s *service) receive(to any) error {
	files, err := receive(s.sock, to)
	fdpass.CloseAll(files) // none is expected
	return err
}
