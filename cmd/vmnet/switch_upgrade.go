package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/control/server"
	"vmnet/internal/access/privilege"
)

func (a *app) switchUpgradeCommand() *cobra.Command {
	var o runVerb
	var foreground bool
	cmd := &cobra.Command{
		Use:   "upgrade NAME",
		Short: "Replace the process of a running switch, which keeps its ports",
		Long: `Have a new process of this program take over a running switch: its ports, addresses and
socket. No guest loses its NIC, and frames wait for some milliseconds. A guest by vhost-user sees
its link down for a moment, since QEMU connects again. If the new process fails, the old one goes
on. Counters begin at 0.

The new process runs as the user of the old one, and prints where that one did. It goes on in the
background, or with --foreground instead of this command.`,
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
		if !foreground {
			return a.upgradeBehind(cmd.Context(), &o)
		}
		return a.takeOver(cmd.Context(), &o)
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

// upgradeBehind starts a process that takes over the switch, and waits until it has.
func (a *app) upgradeBehind(ctx context.Context, o *runVerb) error {
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
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start the new process: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })()
	if _, err := io.ReadFull(r, make([]byte, 1)); err == nil {
		return a.result(switchUpgraded{Switch: o.name, PID: cmd.Process.Pid, Changed: true},
			"switch %s: process %d has taken it over", o.name, cmd.Process.Pid)
	}
	if ctx.Err() != nil {
		_ = cmd.Process.Kill() // the old process then goes on
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("the new process has failed: %w (the old one goes on)", err)
}

// takeOver makes this process the switch.
func (a *app) takeOver(ctx context.Context, o *runVerb) (err error) {
	begin, cancel := context.WithTimeoutCause(ctx, switchPatience, fmt.Errorf("timed out after %v", switchPatience))
	defer cancel()
	c, err := control.Dial(begin, o.name)
	if err != nil {
		return err
	}
	defer c.Close() // once more
	pid, uid := c.Peer()
	if self := os.Geteuid(); self != 0 && self != uid {
		return fmt.Errorf("switch %s: it is user %d's: run this as that user or root", o.name, uid)
	}
	if unit := unitOf(pid); unit != "" && unit != unitOf(os.Getpid()) {
		return fmt.Errorf("switch %s: %s runs it, and would end with it: systemctl restart %[2]s", o.name, unit)
	}
	info, err := c.Info(begin)
	if err != nil {
		return err
	}
	if err := privilege.GiveUp(privilege.Caller{UID: uid, GID: c.Group()}); err != nil {
		return err
	}
	roomForOthers()
	o.ageing, o.addresses, o.filter = time.Duration(info.Ageing)*time.Second, info.FDB.Slots, info.VLANFiltering
	o.poll = polling{time.Duration(info.Poll * float64(time.Microsecond)), info.PollCPUs}
	if err := o.poll.check(); err != nil {
		return err
	}
	sw := vswitch.New(a.switchConfig(o))
	s := server.New(sw, o.info(info.Name))
	t := s.Taking(c.Path())
	defer t.Close()
	err = c.HandOver(begin, t.Part, t.Entries)
	if err == nil && t.Listener == nil {
		err = errors.New("the switch has sent no socket")
	}
	if err == nil {
		err = c.Taken(begin)
	}
	_ = c.Close() // the old process ends, or goes on
	if err != nil {
		err = errors.Join(err, sw.Close())
		s.Close()
		return err
	}
	if err = errors.Join(t.TakeOutput(), sayReady()); err == nil {
		t.Close()
		err = a.serveSwitch(ctx, o, s, t.Listener, nil)
	}
	return errors.Join(err, closeSwitch(sw, s, t.Listener))
}

// unitOf returns the systemd service that a process is in, or "" (proc_pid_cgroup(5)).
func unitOf(pid int) string {
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)) // of a process that has ended, it is in none
	return serviceIn(string(groups))
}

func serviceIn(groups string) string {
	for line := range strings.Lines(groups) {
		path := strings.Split(strings.TrimSpace(line), "/")
		if i := slices.IndexFunc(path, func(s string) bool { return strings.HasSuffix(s, ".service") }); i > 0 {
			return path[i]
		}
	}
	return ""
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
