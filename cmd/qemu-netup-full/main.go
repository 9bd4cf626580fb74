// A short-lived program does not need the CPU limit of its cgroup. Go's runtime would open the
// cgroup's files at each start and keep them open: under a low RLIMIT_NOFILE no fd would be left.
//
//go:debug containermaxprocs=0

// Program qemu-netup-full gives guests their NICs at launch, for users who are not root. It is the
// larger part of qemu-netup, from which it gets its privilege: its file in libexec/vmnet has none.
// It also works alone if it is setuid root or has the file capability CAP_NET_ADMIN. Its name and
// its arguments select one of its forms; see help.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"vmnet/internal/access/bridgeconf"
	"vmnet/internal/access/gate"
	"vmnet/internal/access/policy"
	"vmnet/internal/access/privilege"
	"vmnet/internal/backend"
	"vmnet/internal/cli/console"
	"vmnet/internal/cli/fdroom"
	"vmnet/internal/cli/version"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/roster"
	"vmnet/internal/vmm/launch"
	"vmnet/tapmgr/nic"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	if err := fdroom.Check(); err != nil {
		console.Say(os.Stderr, "qemu-netup", err.Error())
		os.Exit(exitFailure)
	}
	p, err := privilege.Begin() // before anything else
	a := &app{p: p, out: os.Stdout, err: os.Stderr}
	if err != nil {
		a.say(err.Error())
		os.Exit(exitFailure)
	}
	os.Exit(a.run(os.Args))
}

// app is one run of the program.
type app struct {
	p        *privilege.Process
	out, err io.Writer
}

// errUsage is the error for a command line that is inconsistent.
var errUsage = errors.New("wrong usage")

// usageError matches errUsage with errors.Is, without having its text.
type usageError struct{ error }

func (e usageError) Is(target error) bool { return target == errUsage }
func (e usageError) Unwrap() error        { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// run is the whole program; the result is its exit status.
func (a *app) run(argv []string) int {
	form, args := formOf(argv)
	err := form(a, args)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errSaid):
		return exitFailure
	}
	a.say(err.Error())
	if errors.Is(err, errUsage) || errors.Is(err, nic.ErrInvalid) || errors.Is(err, launch.ErrInvalid) {
		a.print(a.err, "see qemu-netup --help\n")
		return exitUsage
	}
	return exitFailure
}

// errSaid is the error for a failure that has been reported already.
var errSaid = errors.New("already reported")

// A form is one way in which the program is called.
type form func(*app, []string) error

// formOf returns the form that the program's name and its arguments select, and the form's
// arguments.
func formOf(argv []string) (form, []string) {
	args := argv[1:]
	own := args // without the VMM's command line
	if end := slices.Index(args, "--"); end >= 0 {
		own = args[:end]
	}
	switch filepath.Base(argv[0]) {
	case "qemu-ifup":
		return (*app).ifUp, args
	case "qemu-ifdown":
		return (*app).ifDown, args
	case "qemu-bridge-helper":
		return (*app).bridgeHelper, args
	}
	has := func(flags ...string) bool {
		return slices.ContainsFunc(own, func(arg string) bool {
			name, _, _ := strings.Cut(arg, "=")
			return slices.Contains(flags, name)
		})
	}
	switch {
	case len(own) < len(args) && has("-h", "--help"):
		return (*app).help, nil
	case len(own) < len(args):
		return (*app).launch, args
	case len(args) == 0:
		return (*app).nothing, args
	case args[0] == "help":
		return (*app).help, nil
	case slices.Contains([]string{"--version", "version"}, args[0]):
		return (*app).version, args[1:]
	case has("--attach"):
		return (*app).serve, args
	case has("--await"):
		return (*app).await, args
	case has("--br", "--fd", "--use-vnet"): // its exit status must not be 0 without an fd sent, not even for help
		return (*app).bridgeHelper, args
	case has("-h", "--help"):
		return (*app).help, nil
	case args[0] == "ifup":
		return (*app).ifUp, args[1:]
	case args[0] == "ifdown":
		return (*app).ifDown, args[1:]
	}
	return (*app).launch, args
}

func (a *app) nothing([]string) error { return usagef("no arguments given") }

func (a *app) help([]string) error { return a.print(a.out, "%s", helpText()) }

func (a *app) version([]string) error {
	return a.print(a.out, "%s\n", version.Text("qemu-netup"))
}

// manager calls do with a Maker for the caller, in the current network namespace.
func (a *app) manager(do func(*backend.Maker) error) error { return a.managerIn("", do) }

// managerIn is manager for a named namespace.
func (a *app) managerIn(netns string, do func(*backend.Maker) error) error {
	return backend.In(netns, func(m *backend.Maker) error {
		m.Owner, m.LookInto = a.p.Caller.UID, a.p.With
		m.Networks = roster.Files{Dir: config.Dir(networksPath), State: leasesPath}
		return do(m)
	})
}

func (a *app) print(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return err
}

// say prints to stderr, which QEMU's users see.
func (a *app) say(text string) { console.Say(a.err, "qemu-netup", text) }

// newFlags makes an empty set of flags.
func newFlags() *pflag.FlagSet {
	f := pflag.NewFlagSet("qemu-netup", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {} // errors say where help is
	return f
}

func parse(f *pflag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		return usagef("%s", strings.TrimPrefix(err.Error(), "pflag: "))
	}
	return nil
}

const profileUsage = "the `NAME` of settings in policy.yaml"

// The paths of the files; a distribution's build may set others with the linker.
var (
	aclPath      = bridgeconf.DefaultPath
	policyPath   = policy.DefaultPath
	networksPath = config.DefaultDir // directory of the networks' files
	leasesPath   = dhcp.DefaultState // directory of their leases
)

func files() gate.Files { return gate.Files{ACL: aclPath, Policy: policyPath} }

func (a *app) openGate(m *backend.Maker) (*gate.Gate, error) {
	return gate.Open(files(), a.p.Caller, m)
}

const synopsis = `qemu-netup gives a guest its NICs at launch. It is installed setuid root, or with the file capability
CAP_NET_ADMIN, and serves users as /etc/qemu/bridge.conf and /etc/vmnet/policy.yaml allow.

  qemu-netup [OPTION]... [--next-nic [OPTION]...]... -- PROGRAM [ARGUMENT]...
      makes the NICs, adds them to the command line of PROGRAM, and becomes it: QEMU, or any other
      VMM, which gets them in place of {vmnet}, or with --vmm env in VMNET_ARGS and VMNET_JSON
  qemu-netup [--profile NAME] [PORT OPTION]... [--use-vnet] --br=BRIDGE --fd=NUMBER
      instead of qemu-bridge-helper: -netdev bridge,br=br0,helper=/usr/local/bin/qemu-netup
  qemu-netup ifup TAP, qemu-netup ifdown TAP; as qemu-ifup and qemu-ifdown: TAP
      put a tap that QEMU made on its bridge, and take it off: -netdev tap,script=qemu-ifup

Examples:
  qemu-netup --bridge br0 -- qemu-system-x86_64 -name guest=P2 -m 1G disk.img
  qemu-netup --bridge br0 --queues 4 --next-nic --macvtap eth0 --qmp auto -- qemu-system-x86_64 -M q35 -smp 4 -name guest=P2 disk.img
  qemu-netup --switch sw0 -- qemu-system-x86_64 -name guest=P2 -m 1G disk.img
  qemu-netup --vm P3 --bridge br0 -- ./my-vmm --net {vmnet}

Options:
`

const closing = `
Exit status: PROGRAM's own; 1 for a failure before it runs, 2 for wrong usage (in the form of
qemu-bridge-helper always 1). See qemu-netup(8), bridge.conf(5), policy.yaml(5).
`

func helpText() string {
	f := newFlags()
	newLaunchOptions().flags(f)
	ownFlags(f)
	return synopsis + strings.TrimRight(f.FlagUsages(), "\n") +
		"\n      --next-nic                   the options that follow describe another NIC\n" + closing
}
