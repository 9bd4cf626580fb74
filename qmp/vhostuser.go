package qmp

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vmnet/step"
)

// maxSocket is the longest path of a socket in bytes (sun_path of unix(7) less its NUL).
const maxSocket = 107

// ListenSteps give QEMU the label of a VhostUser NIC, and have it listen for the NIC's backend.
// [Conn.PlugSteps] follow once a backend has connected. QEMU passes a backend the guest's memory
// only over a unix socket that it has made itself by a path: "chardev does not support FD passing"
// is its reply about a socket that it has got as an fd (net/vhost-user.c).
func (c *Conn) ListenSteps(n NIC, f *Files) []step.Step {
	return append(c.giveSteps(n, f), c.chardevStep(n))
}

func (c *Conn) chardevStep(n NIC) step.Step {
	id, made := ChardevID(n.ID), false
	args := map[string]any{"id": id, "backend": map[string]any{"type": "socket", "data": map[string]any{
		"addr":   map[string]any{"type": "unix", "data": map[string]any{"path": n.Socket}},
		"server": true, "wait": false,
	}}}
	return step.Step{
		Name: "chardev-add " + id,
		Text: commandText("chardev-add", args),
		Do: func(ctx context.Context) error {
			err := c.Execute(ctx, "chardev-add", args, nil)
			made = !refused(err)
			return err
		},
		Undo: func(ctx context.Context) error {
			if !made {
				return nil
			}
			return unlessNoChardev(c.undo(ctx, "chardev-remove", idArg(id)))
		},
	}
}

// RollbackListening is [Conn.Rollback] for a VhostUser, whose socket it also removes.
func (c *Conn) RollbackListening(ctx context.Context, deviceID string) error {
	err := errors.Join(c.settle(ctx, VhostUser), c.Rollback(ctx, deviceID, 0))
	return errors.Join(err, unlessNoChardev(c.undo(ctx, "chardev-remove", idArg(ChardevID(deviceID)))))
}

// settle waits until QEMU has handled the end of the connection to a VhostUser's backend: it puts
// that off, and crashes if the netdev has gone by then (chr_closed_bh in net/vhost-user.c). It
// handles it before a command that is sent after the reply to this one.
func (c *Conn) settle(ctx context.Context, b Backend) error {
	if b != VhostUser {
		return nil
	}
	return c.undo(ctx, "query-name", nil)
}

// unlessNoChardev returns nil for QEMU's reply that a chardev is not there, such as one that went
// with its netdev. The reply has no class of its own: "Chardev 'x' not found".
func unlessNoChardev(err error) error {
	var e *Error
	if errors.As(err, &e) && strings.HasPrefix(e.Desc, "Chardev '") && strings.HasSuffix(e.Desc, "not found") {
		return nil
	}
	return err
}

// HasKVM reports whether the guest runs by KVM (query-kvm).
func (c *Conn) HasKVM(ctx context.Context) (bool, error) {
	var kvm struct{ Enabled bool }
	err := c.Execute(ctx, "query-kvm", nil, &kvm)
	return kvm.Enabled, err
}

// CheckShared returns an error unless a backend can map all of the guest's memory. QEMU plugs a
// VhostUser NIC into a guest with private memory too, where no frame ever passes.
func (c *Conn) CheckShared(ctx context.Context) error {
	var all []struct {
		ID    string
		Share bool
	}
	if err := c.Execute(ctx, "query-memdev", nil, &all); err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("the guest's memory is not shared (%s)", sharedCure)
	}
	for _, m := range all {
		if !m.Share {
			return fmt.Errorf("the guest's memory %q is not shared (%s)", m.ID, sharedCure)
		}
		var kind string
		if err := c.qomGet(ctx, "/objects/"+m.ID, "type", &kind); err != nil {
			return fmt.Errorf("memory %q: %w", m.ID, err)
		}
		if kind == "memory-backend-ram" {
			return fmt.Errorf("the guest's memory %q is a %s, which has no file that a switch could map (%s)",
				m.ID, kind, sharedCure)
		}
	}
	return nil
}

// sharedCure is short: vmnet-switch(8) has the arguments and the XML.
const sharedCure = "share it: qemu-netup --via vhost-user, or memory-backend-memfd,share=on; libvirt: " +
	"<access mode='shared'/>; or use --via tap"
