package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/control/server"
	"vmnet/internal/access/privilege"
	"vmnet/internal/cli/fdroom"
	"vmnet/internal/sdnotify"
)

func (a *app) switchUpgradeCommand() *cobra.Command {
	var o runVerb
	var foreground bool
	cmd := &cobra.Command{
		Use:   "upgrade NAME",
		Short: "Replace the process of a running switch, which keeps its ports",
		Long: `Have a new process of this program take over a running switch: its ports, addresses and
socket. No guest loses its NIC, and frames wait for some milliseconds. If the new process fails, the
old one goes on. Counters begin at 0.

The new process runs as the user of the old one, and prints where that one did. It goes on in the
background, or with --foreground instead of this command. Of a switch that a unit of systemd runs,
it is a process of that unit: this command asks systemd to reload the unit, whose ExecReload= is
vmnet switch upgrade.`,
		Example:           "  vmnet switch upgrade sw0",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	outputFlag(cmd)
	sandboxFlag(cmd, &o.sandbox)
	cmd.Flags().BoolVar(&foreground, "foreground", false, "go on as the switch, until it is stopped")
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) (err error) {
		o.name = args[0]
		if o.sandbox, err = sandboxMode(cmd, o.sandbox); err != nil {
			return err
		}
		if foreground {
			return a.takeOver(cmd.Context(), &o)
		}
		u, inside, err := unitOfSwitch(cmd.Context(), o.name)
		switch {
		case err != nil:
			return err
		case u.name != "" && !inside:
			return a.upgradeUnit(cmd.Context(), &o, u)
		}
		return a.upgradeBehind(cmd.Context(), &o, inside)
	})
	return cmd
}

// switchUpgraded is the result of upgrade.
type switchUpgraded struct {
	Switch  string `json:"switch"`
	PID     int    `json:"pid"` // the new process
	Changed bool   `json:"changed"`
}

// readyEnv has the number of a pipe to which a process that has taken over a switch writes a byte.
const readyEnv = "VMNET_SWITCH_READY"

// upgradeBehind starts a process that takes over the switch, and waits until it has, or has failed.
// In the switch's unit it is a child of this process's parent, systemd: at a stop, systemd waits
// for a main process only if that is its child (unit_kill_context in systemd's src/core/unit.c).
func (a *app) upgradeBehind(ctx context.Context, o *runVerb, inUnit bool) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, "switch", "upgrade", o.name, "--foreground", "--sandbox", string(o.sandbox))
	cmd.Stderr, cmd.ExtraFiles, cmd.Env = os.Stderr, []*os.File{w}, append(os.Environ(), readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if inUnit {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_PARENT
	}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start the new process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = io.ReadFull(r, make([]byte, 1))
	switch {
	case err == nil:
		return a.result(switchUpgraded{Switch: o.name, PID: cmd.Process.Pid, Changed: true},
			"switch %s: process %d has taken it over", o.name, cmd.Process.Pid)
	case errors.Is(err, os.ErrDeadlineExceeded): // it may have taken the switch over, so it must not be killed
		return fmt.Errorf("%w: process %d goes on with the upgrade", context.Cause(ctx), cmd.Process.Pid)
	}
	if inUnit {
		return errors.New("the new process has failed, for the reason above (the old one goes on)")
	}
	return fmt.Errorf("the new process has failed: %w (the old one goes on)", cmd.Wait())
}

// takeOver makes this process the switch.
func (a *app) takeOver(ctx context.Context, o *runVerb) error {
	begin, cancel := context.WithTimeoutCause(ctx, switchPatience, fmt.Errorf("timed out after %v", switchPatience))
	defer cancel()
	c, err := control.Dial(begin, o.name)
	if err != nil {
		return err
	}
	defer c.Close()
	info, err := c.Info(begin)
	if err == nil {
		err = a.becomeUserOf(o, c)
	}
	if err != nil {
		return err
	}
	o.ageing, o.addresses, o.filter = time.Duration(info.Ageing)*time.Second, info.Addresses, info.VLANFiltering
	o.poll = polling{time.Duration(info.Poll * float64(time.Microsecond)), info.PollCPUs}
	if err := o.poll.check(); err != nil {
		return err
	}
	if info.FDStore {
		if o.store, err = sdnotify.Dial(); err != nil {
			return fmt.Errorf("systemd keeps the files of the switch's ports: %w", err)
		}
		defer o.store.Close()
	}
	o.fastPath = cmp.Or(info.FastPath, control.FastPathAuto)
	sw, s := a.newSwitch(o, info.Name)
	t := s.Taking(c.Path())
	defer t.Close()
	err = c.HandOver(begin, t.Part, t.Entries)
	if err == nil {
		err = enoughFor(t)
	}
	if err == nil {
		err = taken(ctx, c)
	}
	if err != nil { // before the connection is closed: then the old process goes on
		if t.Listener != nil {
			err = errors.Join(err, t.Listener.Abandon())
		}
		return errors.Join(err, closeSwitch(sw, s, nil))
	}
	// From here on there is no other switch. What fails is a note, and the switch goes on.
	o.takenOver = true
	a.keep(o, s)
	err = errors.Join(t.Begin(), t.TakeOutput(), sayReady())
	if err != nil {
		a.note(err.Error())
	}
	t.Close()
	_ = c.Close()
	return errors.Join(a.serveSwitch(ctx, o, s, t.Listener, nil), closeSwitch(sw, s, t.Listener))
}

// becomeUserOf gives up all privileges and becomes the switch's user, if the caller may.
func (a *app) becomeUserOf(o *runVerb, c *control.Client) error {
	pid, uid := c.Peer()
	self := os.Geteuid()
	if self != 0 && self != uid {
		return fmt.Errorf("switch %s: it is user %d's: run this as that user or root", o.name, uid)
	}
	if u := unitOf(pid); u.name != "" && u != unitOf(os.Getpid()) {
		return fmt.Errorf("switch %s: %s runs it, and would end with it (without --foreground, systemd is asked)",
			o.name, u.name)
	}
	if self == uid {
		to, err := privilege.Who()
		if err != nil {
			return err
		}
		return privilege.GiveUp(to)
	}
	gid, groups, err := c.Groups()
	if err != nil {
		return fmt.Errorf("switch %s: the groups of user %d: %w", o.name, uid, err)
	}
	return privilege.GiveUp(privilege.Caller{UID: uid, GID: gid, Groups: groups})
}

// enoughFor returns an error if the switch lacks something that the ports need.
func enoughFor(t *server.Taking) error {
	if t.Listener == nil {
		return errors.New("the switch has sent no socket")
	}
	limit, err := fdroom.Limit()
	if need := uint64(100 + filesOfPort*t.Ports()); err == nil && limit < need {
		return fmt.Errorf("no room for files here: %d may be open, %d ports need up to %d (raise ulimit -n)",
			limit, t.Ports(), need)
	}
	return err
}

// taken tells the old process that this one is the switch now. It is not interrupted: halfway, no
// process would have the ports.
func taken(ctx context.Context, c *control.Client) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), switchPatience)
	defer cancel()
	return c.Taken(ctx)
}

// sayReady tells the command that waits for this process, if one does.
func sayReady() error {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "ready")
	_, _ = f.Write([]byte{1}) // it may have been interrupted
	return errors.Join(f.Close(), os.Unsetenv(readyEnv))
}
