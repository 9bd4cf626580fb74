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

// undoUnplug bounds the wait for a guest to give back a device that it was just
// given; it fits within step.UndoTimeout.
const undoUnplug = 7 * time.Second

// Plug gives QEMU a NIC, or leaves nothing of it behind.
func (c *Conn) Plug(ctx context.Context, n NIC) error {
	return step.Run(ctx, c.PlugSteps(n), nil)
}

// PlugSteps is [Conn.Plug] as a list, one step for each monitor command; a step's Text is the
// command as it is sent. c may be nil where only the texts are wanted. The elements of n.Queues,
// n.Vhosts, n.Netns and n.Label are read when their step runs, so that steps before may open them.
//
// The vhost fds come after the queues, and these after the netns and the label, so that they are
// given back before them: an undo that is cut short leaves a device, whose link tells what else is
// left.
//
// An Undo takes back only what its own Do may have done, so that a
// NIC which has the same id already is not touched. After a crash, use [Conn.Rollback].
func (c *Conn) PlugSteps(n NIC) []step.Step {
	steps := []step.Step{{
		Name: "check " + n.ID,
		Text: commandText("qom-list", map[string]any{"path": peripheral}),
		Do:   func(ctx context.Context) error { return c.checkNew(ctx, n) },
	}}
	for i := range n.Netns {
		steps = append(steps, c.getFDStep(NetnsName(n.ID), &n.Netns[i]))
	}
	for i := range n.Label {
		steps = append(steps, c.getFDStep(LabelName(n.ID), &n.Label[i]))
	}
	for i := range n.Queues {
		steps = append(steps, c.getFDStep(QueueName(n.ID, i), &n.Queues[i]))
	}
	for i := range n.Vhosts {
		steps = append(steps, c.getFDStep(VhostName(n.ID, i), &n.Vhosts[i]))
	}
	return append(steps, c.netdevStep(n), c.deviceStep(n))
}

func (c *Conn) checkNew(ctx context.Context, n NIC) error {
	if err := n.Validate(); err != nil {
		return err
	}
	has, err := c.HasDevice(ctx, n.ID)
	if err == nil && has {
		err = fmt.Errorf("device %s: %w", n.ID, fs.ErrExist)
	}
	return err
}

// getFDStep reads *f when it runs: an earlier step may open it.
func (c *Conn) getFDStep(name string, f **os.File) step.Step {
	tried := false
	return step.Step{
		Name: "getfd " + name,
		Text: commandText("getfd", fdName(name)),
		Do: func(ctx context.Context) error {
			tried = true
			return c.GetFD(ctx, name, *f)
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
	made := false // or half made: QEMU may keep the id of a netdev whose later queues it refused
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
			return unlessGone(c.undo(ctx, "netdev_del", idArg(n.netdev())))
		},
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
				// QEMU has changed its root (-chroot), or was installed without ROMs. One serves to
				// boot from the NIC, which a guest that runs has done.
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

// undoDevice asks the guest for the device, and waits for it if QEMU answers.
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
		return fmt.Errorf("the guest keeps an empty device %s until it lets go of it: %w", id, err)
	}
	return nil
}

// Rollback removes what a crashed manager may have left in QEMU before the device came: the
// netdev and the getfd names that derive from the device's id, up to
// that many queues. All of it may be there or not.
//
// It cuts a NIC that works from its backend: ask [Conn.HasDevice] before.
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

// isDuplicate recognises the refusal of an id in use, which has no class of its own.
func isDuplicate(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.HasPrefix(e.Desc, "Duplicate ID")
}

// commandText is a command as it is sent, without its id.
func commandText(name string, args map[string]any) string {
	text, err := json.Marshal(command{Execute: name, Arguments: args})
	if err != nil { // strings, numbers and bools always marshal
		return name
	}
	return string(text)
}
