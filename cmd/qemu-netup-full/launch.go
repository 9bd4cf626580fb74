package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/internal/access/bridgehelper"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/policy"
	"vmnet/internal/backend"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/network/userdirs"
	"vmnet/internal/rundir"
	"vmnet/internal/vmm/launch"
	"vmnet/internal/vmm/qemu"
	"vmnet/macvtap/vtap"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// launch makes the NICs and becomes the guest's VMM.
func (a *app) launch(args []string) error {
	o, err := parseLaunch(args)
	if err != nil {
		return err
	}
	own, err := a.ownNetworks(o)
	if err != nil {
		return err
	}
	if err := a.keepFor(o); err != nil {
		return err
	}
	// From here on this process runs as the caller, and finds switches by name in the caller's
	// directories.
	if err := os.Setenv("XDG_RUNTIME_DIR", a.p.Getenv("XDG_RUNTIME_DIR")); err != nil {
		return err
	}
	// This process has no ambient capability by now.
	if err := userdirs.Start(own, o.dryRun, a.p.Find, a.p.Getenv); err != nil {
		return err
	}
	if err := o.name(a.guestFiles()); err != nil {
		return err
	}
	for _, path := range o.unread {
		a.say(fmt.Sprintf("note: %s was not read, so its settings of the machine are unknown (set --place)", path))
	}
	path, err := a.p.Find(o.argv[0])
	if err != nil {
		return err
	}
	made, err := a.make(o)
	if err != nil {
		return err
	}
	// From here on every failure ends this process, and the kernel removes the devices.
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
	runtime.KeepAlive(made) // keeps its files open until here
	return err
}

// guestFiles reads files as the caller. By then no capability that overrides the modes of files is
// in effect.
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

// readConfig reads a file that QEMU will read as well. It refuses a pipe, which only one of them
// could read.
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

// keepFor keeps the capabilities that making the devices needs: a macvtap is made in a netns of its
// own (CAP_SYS_ADMIN) and opened by a node of its own (CAP_MKNOD). Port security and --allow-in
// take BPF programs (CAP_BPF), whose pointer arithmetic the verifier allows with CAP_PERFMON. Rates
// take a program too, which needs only CAP_BPF. A packet socket (CAP_NET_RAW) announces the
// addresses of a routed NIC, which work without the announcement too.
func (a *app) keepFor(o *launchOptions) error {
	if o.netns != "" && !a.p.Caller.Root() {
		return usagef(
			"--netns %s: for root only, since this program has privileges in every netns that you may not have",
			o.netns)
	}
	if o.dryRun {
		return a.p.Drop()
	}
	h, err := bridgehelper.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	var keep, reserve []cap.Value
	for _, n := range o.nics {
		if n.spec.Switch != nil { // which takes no privilege
			continue
		}
		keep = append(keep, cap.NET_ADMIN)
		if mayUseOVS(h, n.profile, n.spec.Bridge) {
			reserve = append(reserve, cap.DAC_OVERRIDE)
		}
		if n.spec.Routed != "" && a.p.Has(cap.NET_RAW) {
			keep = append(keep, cap.NET_RAW)
		}
		if !n.spec.Security.IsZero() || !n.spec.AllowIn.IsZero() {
			if !a.p.Has(cap.BPF) || !a.p.Has(cap.PERFMON) {
				return errors.New("--port-security and --allow-in need CAP_BPF and CAP_PERFMON (install qemu-netup " +
					"setuid root, or by setcap cap_net_admin,cap_bpf,cap_perfmon+ep: vmnet doctor)")
			}
			reserve = append(reserve, cap.BPF, cap.PERFMON)
		}
		if ratelimit.NeedsBPF(n.spec.Lower != nil, n.spec.Rates) {
			if !a.p.Has(cap.BPF) {
				return errors.New("--rate-up and --rate-down need CAP_BPF (install qemu-netup setuid root, " +
					"or with setcap cap_net_admin,cap_bpf+ep; see vmnet doctor)")
			}
			reserve = append(reserve, cap.BPF)
		}
		if n.spec.Lower == nil {
			continue
		}
		if !a.p.Has(cap.SYS_ADMIN) || !a.p.Has(cap.MKNOD) {
			return fmt.Errorf(
				"%s on %s: needs CAP_SYS_ADMIN and CAP_MKNOD (install qemu-netup setuid root with chmod u+s, "+
					"or run it as root; see vmnet doctor)",
				n.spec.Lower.Kind, n.spec.Lower.Device)
		}
		// A macvtap is in a netns that only /proc of its holders shows, and they can hide from
		// other processes of their user: the count must be able to inspect all of them.
		reserve = append(reserve, cap.SYS_PTRACE, cap.DAC_READ_SEARCH)
		keep = append(keep, cap.SYS_ADMIN, cap.MKNOD)
	}
	if len(keep) == 0 {
		return a.p.Drop()
	}
	a.p.Reserve(reserve...)
	return a.p.Keep(keep...)
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
			if s.Switch == nil { // a switch decides by itself, and is asked as the caller
				requests = append(requests, request(s))
			}
		}
		if len(requests) > 0 {
			if err := g.Allow(gate.ForUsers, requests...); err != nil {
				return err
			}
		}
		m.Run = a.runner(o)
		if made, err = a.makeNICs(m, o, specs); err != nil {
			return err
		}
		if note := qemu.MachineOf(o.guest).Note(); note != "" && o.place != string(qemu.PlacePCI) {
			a.say("note: " + note)
		}
		a.notes(o, made)
		if o.dryRun || len(requests) == 0 {
			return nil
		}
		return g.Still()
	})
	return made, err
}

// request returns what the policy decides about for a NIC.
func request(s nic.Spec) policy.Request {
	r := policy.Request{
		Guest: s.VM, Bridge: cmp.Or(s.Bridge, s.Network), Network: s.Network, Routed: s.Routed, Port: s.Port,
		MAC: s.MAC, Queues: s.Queues, Checks: s.Security.Checks, EtherTypes: s.Security.EtherTypes,
		AllowIn: s.AllowIn, Rates: s.Rates, IfaceID: s.IfaceID, OVSDB: s.OVSDB,
	}
	for _, a := range s.IP {
		r.Addrs = append(r.Addrs, netip.PrefixFrom(a, a.BitLen()))
	}
	r.Addrs = append(r.Addrs, s.Security.Nets...)
	if l := s.Lower; l != nil {
		r.Lower, r.Kind, r.Addrs = l.Device, l.Kind, l.Addrs
		r.Mode = cmp.Or(l.Mode, vtap.Modes(l.Kind)[0])
	}
	return r
}

// notes prints the notices of the NICs, each text once.
func (a *app) notes(o *launchOptions, made *backend.Launch) {
	all := o.notices
	for _, n := range made.NICs {
		all = append(all, n.Notices...)
	}
	for i, text := range all {
		if !slices.Contains(all[:i], text) {
			a.say("note: " + text)
		}
	}
}

// runner returns a function that prints the steps (dry run) or logs them, or nil to just run them.
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

// command adds the NICs to the VMM's command line.
func (o *launchOptions) command(made *backend.Launch, monitor string) (launch.Command, error) {
	next := 3 // the first number of a file that a plan has not opened
	c := launch.Config{Guest: o.guest, VM: o.vm, Place: o.place, SparePorts: o.sparePorts, Monitor: monitor}
	for _, n := range made.NICs {
		one := launch.NIC{
			Device: n.Device, Name: n.NIC.ID, Interface: n.NIC.Interface, Type: n.NIC.Type,
			Source: n.NIC.Source, MTU: n.NIC.MTU,
		}
		one.Number(n.Files, &next)
		c.NICs = append(c.NICs, one)
	}
	return c.Command(o.argv)
}

// inherit keeps all fds of the devices open over execve.
func inherit(made *backend.Launch) error {
	for _, n := range made.NICs {
		for _, f := range n.Inherited() {
			if err := fdpass.Inherit(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// monitorPath returns the intended path of QEMU's QMP socket; empty for none.
func (a *app) monitorPath(o *launchOptions) string {
	switch {
	case o.qmp != "auto":
		return strings.TrimPrefix(o.qmp, "none")
	case launch.HasMonitor(o.guest):
		return ""
	}
	return filepath.Join(a.monitorDirs()[0], monitorName(o.nics[0].spec.VM))
}

// monitor makes the socket's directory, with the caller's privileges, and returns the socket's
// path. vmnet attach finds it by QEMU's command line.
func (a *app) monitor(o *launchOptions) (string, error) {
	path := a.monitorPath(o)
	if path == "" || o.qmp != "auto" || o.dryRun {
		return path, nil
	}
	dir, err := rundir.Make(a.monitorDirs(), a.p.Caller.UID)
	if err != nil {
		return "", fmt.Errorf("--qmp auto: %w (give a path: --qmp PATH)", err)
	}
	path = filepath.Join(dir, filepath.Base(path))
	if conn, err := net.Dial("unix", path); err == nil { // QEMU would replace that guest's socket
		_ = conn.Close()
		return "", fmt.Errorf("--qmp auto: a guest of that name already listens on %s (give another path: --qmp PATH)",
			path)
	}
	return path, nil
}

// monitorDirs returns the directories where the socket may be, the best first.
func (a *app) monitorDirs() []string {
	return rundir.Of(a.p.Caller.UID, a.p.Getenv("XDG_RUNTIME_DIR"))
}

// maxMonitorName leaves room for the directory in a socket's path (sun_path of unix(7), 107 bytes).
const maxMonitorName = 60

// monitorName returns a file name for a guest's name, different for each. If the guest's name
// cannot be a file name or is too long for a socket's path, the result ends with ~ and a hash; no
// other has a ~.
func monitorName(vm string) string {
	plain := strings.Map(func(r rune) rune {
		if strings.ContainsRune("/,=~", r) || r <= ' ' {
			return '-'
		}
		return r
	}, vm)
	plain = strings.TrimLeft(plain, ".")
	if plain == vm && len(plain) <= maxMonitorName {
		return plain + ".qmp"
	}
	sum := sha256.Sum256([]byte(vm))
	hash := "~" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10])) // 16 letters
	return strings.ToValidUTF8(plain[:min(len(plain), maxMonitorName-len(hash))], "") + hash + ".qmp"
}
