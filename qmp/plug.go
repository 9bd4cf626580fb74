package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"vmnet/step"
)

// undoUnplug bounds the wait until a guest releases a device that it has just got; it fits within
// step.UndoTimeout.
const undoUnplug = 7 * time.Second

// Plug gives QEMU a NIC and copies of its files, or leaves nothing of it behind.
func (c *Conn) Plug(ctx context.Context, n NIC, f *Files) error {
	return step.Run(ctx, c.PlugSteps(n, f), nil)
}

// PlugSteps returns what [Conn.Plug] does as a list, one step for each monitor command; a step's
// Text is the command as it is sent. Each step reads its file from f when it runs, so steps before
// it may open the file and add it to f. c and f may be nil if only the texts are wanted.
//
// The vhost files follow the queues, and these follow the netns and the label, so an undo takes
// them back first: an undo that is cut short leaves an interface whose link says what else is left.
//
// An Undo takes back only what its own Do may have done, so it does not touch another NIC of the
// same id. After a crash, use [Conn.Rollback].
//
// Of a VhostUser, [Conn.ListenSteps] come first, and then a backend connects: QEMU answers nobody
// from netdev_add until a backend has answered it.
func (c *Conn) PlugSteps(n NIC, f *Files) []step.Step {
	var steps []step.Step
	if n.backend() != VhostUser {
		steps = c.giveSteps(n, f)
	}
	steps = append(steps, c.netdevStep(n))
	if n.LinkDown {
		steps = append(steps, c.linkDownStep(n, "netdev"))
	}
	steps = append(steps, c.deviceStep(n))
	if n.LinkDown {
		steps = append(steps, c.linkDownStep(n, "device"))
	}
	return steps
}

// giveSteps give QEMU the NIC's files.
func (c *Conn) giveSteps(n NIC, f *Files) []step.Step {
	steps := []step.Step{{
		Name: "check " + n.ID,
		Text: commandText("qom-list", map[string]any{"path": peripheral}),
		Do:   func(ctx context.Context) error { return c.checkNew(ctx, n, f) },
	}}
	if n.Netns {
		steps = append(steps, c.getFDStep(NetnsName(n.ID), func() *os.File { return f.Netns }))
	}
	if n.Label {
		steps = append(steps, c.getFDStep(LabelName(n.ID), func() *os.File { return f.Label }))
	}
	for i := range n.QueueFiles() {
		steps = append(steps, c.getFDStep(QueueName(n.ID, i), func() *os.File { return f.Queues[i] }))
	}
	for i := range n.vhosts() {
		steps = append(steps, c.getFDStep(VhostName(n.ID, i), func() *os.File { return f.Vhosts[i] }))
	}
	return steps
}

// checkNew checks the NIC and its files, and that QEMU has no device of that id.
func (c *Conn) checkNew(ctx context.Context, n NIC, f *Files) error {
	if err := f.check(n); err != nil {
		return err
	}
	has, err := c.HasDevice(ctx, n.ID)
	if err == nil && has {
		err = fmt.Errorf("device %s: %w", n.ID, fs.ErrExist)
	}
	return err
}

// getFDStep passes the file that file returns when the step runs.
func (c *Conn) getFDStep(name string, file func() *os.File) step.Step {
	tried := false
	return step.Step{
		Name: "getfd " + name,
		Text: commandText("getfd", fdName(name)),
		Do: func(ctx context.Context) error {
			tried = true
			return c.GetFD(ctx, name, file())
		},
		Undo: func(ctx context.Context) error {
			if !tried {
				return nil
			}
			return unlessGone(c.undo(ctx, "closefd", fdName(name)))
		},
	}
}

func (c *Conn) netdevStep(n NIC) step.Step {
	made := false // or half made: QEMU may keep the id of a netdev of which it refused a later queue
	return step.Step{
		Name: "netdev_add " + n.netdev(),
		Text: commandText("netdev_add", n.netdevArgs()),
		Do: func(ctx context.Context) error {
			err := c.NetdevAdd(ctx, n.netdevArgs())
			made = !isDuplicate(err)
			return err
		},
		Undo: func(ctx context.Context) error {
			if !made {
				return nil
			}
			return errors.Join(c.settle(ctx, n.backend()), unlessGone(c.undo(ctx, "netdev_del", idArg(n.netdev()))))
		},
	}
}

// linkDownStep sets the link of a netdev down, and that of its device, once there is one. It needs
// no undo, since the netdev goes.
func (c *Conn) linkDownStep(n NIC, of string) step.Step {
	return step.Step{
		Name: "set_link " + of,
		Text: SetLinkCommand(n.netdev(), false),
		Do:   func(ctx context.Context) error { return c.SetLink(ctx, n.netdev(), false) },
	}
}

func (c *Conn) deviceStep(n NIC) step.Step {
	made := false
	return step.Step{
		Name: "device_add " + n.ID,
		Text: commandText("device_add", n.deviceArgs()),
		Do: func(ctx context.Context) error {
			typed, err := c.TypeOptions(ctx, n)
			if err != nil {
				return err
			}
			args := typed.deviceArgs()
			err = c.DeviceAdd(ctx, args)
			if _, given := args["romfile"]; !given && lacksROM(err) {
				// QEMU has changed its root (-chroot), or was installed without ROMs. A ROM only
				// serves to boot from the NIC, and this guest has booted.
				args["romfile"] = ""
				err = c.DeviceAdd(ctx, args)
			}
			made = !refused(err)
			return err
		},
		Undo: func(ctx context.Context) error {
			if !made {
				return nil
			}
			return c.undoDevice(ctx, n.ID)
		},
	}
}

// undoDevice asks the guest to release the device, and waits for that if QEMU answers.
func (c *Conn) undoDevice(ctx context.Context, id string) error {
	err := c.undo(ctx, "device_del", idArg(id))
	if errors.Is(err, ErrDeviceNotFound) {
		return nil
	}
	if err == nil || refused(err) {
		ctx, cancel := context.WithTimeout(ctx, undoUnplug)
		defer cancel()
		err = c.removeDevice(ctx, id, nil)
	}
	if err != nil {
		return fmt.Errorf("the guest keeps an empty device %s until it releases it: %w", id, err)
	}
	return nil
}

// Rollback removes what an interrupted Plug may have left in QEMU before device_add: the netdev and
// the getfd names that derive from the device's id, up to that many queues. Each of them may be
// absent.
//
// It cuts a NIC that works from its backend: call [Conn.HasDevice] first.
func (c *Conn) Rollback(ctx context.Context, deviceID string, queues int) error {
	errs := []error{unlessGone(c.undo(ctx, "netdev_del", idArg(NetdevID(deviceID))))}
	for _, name := range []func(string, int) string{VhostName, QueueName} {
		for i := queues - 1; i >= 0; i-- {
			errs = append(errs, unlessGone(c.undo(ctx, "closefd", fdName(name(deviceID, i)))))
		}
	}
	for _, name := range []string{LabelName(deviceID), NetnsName(deviceID)} {
		errs = append(errs, unlessGone(c.undo(ctx, "closefd", fdName(name))))
	}
	return errors.Join(errs...)
}

// isDuplicate reports whether QEMU has refused an id that is in use. Such a refusal has no class of
// its own.
func isDuplicate(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.HasPrefix(e.Desc, "Duplicate ID")
}

// commandText returns a command as it is sent, without its id.
func commandText(name string, args map[string]any) string {
	text, err := json.Marshal(command{Execute: name, Arguments: args})
	if err != nil { // strings, numbers and bools always marshal
		return name
	}
	return string(text)
}
