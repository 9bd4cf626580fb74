package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/policy"
	"vmnet/internal/backend"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/step"
	"vmnet/internal/vmm/launch"
	"vmnet/internal/vmm/qemu"
)

// launch makes the NICs and becomes the guest's VMM.
func (a *app) launch(args []string) error {
	o, err := parseLaunch(args)
	if err != nil {
		return err
	}
	if err := a.keepFor(o); err != nil {
		return err
	}
	// Switches are found by name where the caller's are: as the caller from here on.
	if err := os.Setenv("XDG_RUNTIME_DIR", a.p.Getenv("XDG_RUNTIME_DIR")); err != nil {
		return err
	}
	if err := o.name(a.guestFiles()); err != nil {
		return err
	}
	for _, path := range o.unread {
		a.say(fmt.Sprintf("note: %s was not read: what it says of the machine is not known (--place tells it)", path))
	}
	path, err := a.p.Find(o.argv[0])
	if err != nil {
		return err
	}
	made, err := a.make(o)
	if err != nil {
		return err
	}
	// From here on every failure ends us, and the devices with us.
	monitor, err := a.monitor(o)
	if err != nil {
		return err
	}
	command, err := o.command(made, monitor)
	if err != nil {
		return err
	}
	if o.dryRun {
		return a.print(a.out, "%s\n", console.Clean(console.Quote(command.Argv)))
	}
	if err := a.p.Drop(); err != nil {
		return err
	}
	if err := inherit(made); err != nil {
		return err
	}
	err = a.p.Exec(path, command.Argv, command.Env...)
	runtime.KeepAlive(made) // or its files would be closed before
	return err
}

// guestFiles look with the caller's rights, which we have left by then.
func (a *app) guestFiles() guestFiles {
	return guestFiles{
		target: func(program string) string {
			path, err := a.p.Find(program)
			if err == nil {
				path, err = filepath.EvalSymlinks(path)
			}
			if err != nil {
				return program
			}
			return path
		},
		read: readConfig,
	}
}

// readConfig reads a file that QEMU will read too, and so no pipe, of which only one of us would have the text.
func readConfig(path string) (string, error) {
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > qemu.MaxConfig) {
		err = fs.ErrInvalid
	}
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// keepFor keeps what making the devices takes: a macvtap is made in a netns of its own
// (CAP_SYS_ADMIN) and opened by a node of its own (CAP_MKNOD).
func (a *app) keepFor(o *launchOptions) error {
	if o.netns != "" && !a.p.Caller.Root() {
		return usagef("--netns %s: for root alone, since this program has rights in all of them that you may not have", o.netns)
	}
	if o.dryRun {
		return a.p.Drop()
	}
	none := true // of them takes a right
	for _, n := range o.nics {
		none = none && n.spec.Switch != nil
		if n.spec.Lower == nil {
			continue
		}
		if !a.p.Has(cap.SYS_ADMIN) || !a.p.Has(cap.MKNOD) {
			return fmt.Errorf("%s on %s: making one needs CAP_SYS_ADMIN and CAP_MKNOD, which only the installation setuid root gives (chmod u+s; vmnet doctor tells more), or root", n.spec.Lower.Kind, n.spec.Lower.Device)
		}
		// A macvtap is in a netns that only its holders show, and they can hide from other processes
		// of their user: whoever counts must be able to look into all.
		a.p.Reserve(cap.SYS_PTRACE, cap.DAC_READ_SEARCH)
		return a.p.Keep(cap.NET_ADMIN, cap.SYS_ADMIN, cap.MKNOD)
	}
	if none {
		return a.p.Drop()
	}
	return a.p.Keep(cap.NET_ADMIN)
}

// make makes the devices that the caller may have.
func (a *app) make(o *launchOptions) (made *backend.Launch, err error) {
	err = a.managerIn(o.netns, func(m *backend.Maker) error {
		g, err := a.openGate(m)
		if err != nil {
			return err
		}
		specs, err := o.settle(g.Policy())
		if err != nil {
			return err
		}
		var requests []policy.Request
		for _, s := range specs {
			if s.Switch == nil { // that one admits whom it wants, and is asked as the caller
				requests = append(requests, request(s))
			}
		}
		if len(requests) > 0 {
			if err := g.Allow(gate.ForUsers, requests...); err != nil {
				return err
			}
		}
		m.Run = a.runner(o)
		if made, err = m.PlanLaunch(context.Background(), specs...); err != nil {
			return err
		}
		// What is wrong with the command line is told before a device is made.
		if _, err := o.command(made, a.monitorPath(o)); err != nil {
			return err
		}
		if err := made.Make(context.Background()); err != nil {
			return err
		}
		if note := qemu.MachineOf(o.guest).Note(); note != "" && o.place != string(qemu.PlacePCI) {
			a.say("note: " + note)
		}
		a.notes(made)
		if o.dryRun || len(requests) == 0 {
			return nil
		}
		return g.Still()
	})
	return made, err
}

// notes tells what people should know of their NICs, and what is so of several only once.
func (a *app) notes(made *backend.Launch) {
	told := map[string]bool{}
	for _, n := range made.NICs {
		for _, text := range n.Notices {
			if !told[text] {
				a.say("note: " + text)
			}
			told[text] = true
		}
	}
}

// runner runs the steps as asked for: in silence, telling each, or only telling.
func (a *app) runner(o *launchOptions) func(context.Context, []step.Step) error {
	switch {
	case o.dryRun:
		return func(_ context.Context, steps []step.Step) error {
			for i, s := range steps {
				if err := a.print(a.out, "%2d. %s: %s\n", i+1, s.Name, console.Clean(s.Text)); err != nil {
					return err
				}
			}
			return nil
		}
	case o.verbose:
		return func(ctx context.Context, steps []step.Step) error {
			return step.Run(ctx, steps, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
				start := time.Now()
				err := do(ctx)
				a.say(fmt.Sprintf("%s: %s (%v)", s.Name, s.Text, time.Since(start).Round(time.Microsecond)))
				return err
			})
		}
	}
	return nil
}

// command adds the NICs to the VMM's command line. The fds keep their numbers over execve.
func (o *launchOptions) command(made *backend.Launch, monitor string) (launch.Command, error) {
	next := 3 // numbers of a dry run
	c := launch.Config{Guest: o.guest, VM: o.vm, Place: o.place, SparePorts: o.sparePorts, Monitor: monitor}
	for _, n := range made.NICs {
		one := launch.NIC{
			Device: n.Device, Name: n.NIC.ID, Interface: n.NIC.Interface, Type: n.NIC.Type, Source: n.NIC.Source, MTU: n.NIC.MTU,
			Queues: numbers(n.Device.Queues, &next), Vhosts: numbers(n.Device.Vhosts, &next), Netns: -1,
		}
		if fds := numbers(n.Device.Netns, &next); len(fds) > 0 {
			one.Netns = fds[0]
		}
		if fds := numbers(n.Device.Label, &next); len(fds) > 0 {
			one.Label = fds[0]
		}
		c.NICs = append(c.NICs, one)
	}
	return c.Command(o.argv)
}

// numbers are the files' fds, or where there are none yet, the next ones.
func numbers(files []*os.File, next *int) (fds []int) {
	for _, f := range files {
		if f != nil {
			fds = append(fds, int(f.Fd()))
			continue
		}
		fds = append(fds, *next)
		*next++
	}
	return fds
}

// inherit leaves all of the devices' fds open over execve.
func inherit(made *backend.Launch) error {
	for _, n := range made.NICs {
		files := slices.Concat(n.Device.Queues, n.Device.Vhosts, n.Device.Netns, n.Device.Label)
		if n.Lifeline != nil {
			files = append(files, n.Lifeline)
		}
		for _, f := range files {
			if err := fdpass.Inherit(f); err != nil {
				return err
			}
		}
	}
	return nil
}
