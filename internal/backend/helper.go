package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/fdpass"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// helperTap is a tap on a bridge that a privileged helper makes for a caller who has no right
// to. Everything that needs none, such as the guest's monitor, stays the caller's.
type helperTap struct {
	bridgeTap
	record *nic.Record // what plan has decided

	cmd   *exec.Cmd
	said  head // what it cannot say otherwise
	sock  *fdpass.Socket
	files []*os.File
}

func (s *helperTap) Plan(ctx context.Context, r *nic.Record) error {
	if s.Spec.Lower != nil {
		return fmt.Errorf("a %s is made by root alone while the guest runs (run vmnet as root, or start the guest by qemu-netup --%s %s)", s.Spec.Lower.Kind, s.Spec.Lower.Kind, s.Spec.Lower.Device)
	}
	s.record = r
	return s.bridgeTap.Plan(ctx, r)
}

func (s *helperTap) queues() []*os.File { return s.files }

func (s *helperTap) steps(_ int, _ string, queues int) []step.Step {
	return []step.Step{{
		Name: "helper",
		Text: fmt.Sprintf("%s --attach: it makes tap %s on %s%s, queues: %d", s.m.HelperPath, s.name, s.br.Name, portText(s.Spec.Port), queues),
		Do:   s.ask,
		Undo: func(ctx context.Context) error {
			err := s.Close()
			s.end()
			if s.Link == nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, UndoWait)
			defer cancel()
			return errors.Join(err, s.m.WaitGone(ctx, &inventory.Device{Link: s.Link}))
		},
	}}
}

// ask starts the helper and gets the queues from it.
func (s *helperTap) ask(ctx context.Context) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	r := s.record
	err := send(s.sock, tapRequest{
		VM: r.VM, NIC: r.NIC, Bridge: r.Source, Port: r.Port, MAC: r.MAC.String(), Model: r.Model,
		Queues: r.Queues, MTU: r.MTU, Vhost: r.Vhost, Options: r.Options, Via: r.Via,
	})
	if err != nil {
		return s.explain(err)
	}
	var o tapResponse
	if s.files, err = s.answer(&o); err != nil {
		return err
	}
	if len(s.files) != r.Queues {
		return fmt.Errorf("%s handed over %d queues of %d", s.m.HelperPath, len(s.files), r.Queues)
	}
	s.Link, err = s.m.NL.Link(o.Interface)
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
	s.cmd.Stderr = &s.said
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return fmt.Errorf("%w (attaching needs CAP_NET_ADMIN: run as root, or install qemu-netup setuid root; vmnet doctor tells more)", err)
	}
	return nil
}

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

// explain tells of a helper that ended without a word to us.
func (s *helperTap) explain(err error) error {
	if waitErr := s.wait(); waitErr != nil && errors.Is(err, io.EOF) {
		err = waitErr
	}
	if text := strings.TrimSpace(string(s.said)); text != "" {
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

func (s *helperTap) wait() error {
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Wait()
	s.cmd = nil
	return err
}

// Close closes our copies and lets the helper end.
func (s *helperTap) Close() error {
	fdpass.CloseAll(s.files)
	s.files = nil
	return nil
}

// end lets the helper go, whose own copies go with it.
func (s *helperTap) end() {
	if s.sock != nil {
		_ = s.sock.Close()
		s.sock = nil
	}
	_ = s.wait() // what it had to say it has said
}

// Verify has the helper say in the alias that the NIC is plugged.
func (s *helperTap) Verify(context.Context, int, string) (*inventory.Device, error) {
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
	l, err := s.m.NL.LinkByIndex(s.Link.Index)
	return &inventory.Device{Link: l, MasterName: s.br.Name}, err
}
