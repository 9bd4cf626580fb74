// A short program has no use for the CPU limit of its cgroup, whose files Go's runtime would open at
// each start and keep open: under a low RLIMIT_NOFILE no fd would be left.
//
//go:debug containermaxprocs=0

// Program qemu-netup-full gives guests their NICs at launch, for users who are not root. It is the
// greater part of qemu-netup, from which it gets its privilege: it is installed in libexec/vmnet and
// has none of its own. Setuid root or with the file capability CAP_NET_ADMIN it also works alone. Its
// name and arguments say which of its forms is meant; see help.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/access/privilege"
	"vmnet/internal/backend"
	"vmnet/internal/cli/console"
	"vmnet/internal/cli/fdroom"
	"vmnet/internal/cli/version"
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

// errUsage is a command line that makes no sense.
var errUsage = errors.New("wrong usage")

// usageError Is errUsage, without saying so in its text.
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

// errSaid is an error that somebody else has been told.
var errSaid = errors.New("said elsewhere")

// A form is one way in which the program is called.
type form func(*app, []string) error

// formOf tells by the program's name and the shape of its arguments which form is meant.
func formOf(argv []string) (form, []string) {
	args := argv[1:]
	own := args // what is not the VMM's
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

func (a *app) nothing([]string) error { return usagef("nothing is asked for") }

func (a *app) help([]string) error { return a.print(a.out, "%s", helpText()) }

func (a *app) version([]string) error {
	return a.print(a.out, "%s\n", version.Text("qemu-netup"))
}

// manager works for the caller, in the namespace that we are in.
func (a *app) manager(do func(*backend.Maker) error) error { return a.managerIn("", do) }

// managerIn is manager for a named namespace.
func (a *app) managerIn(netns string, do func(*backend.Maker) error) error {
	return backend.In(netns, func(m *backend.Maker) error {
		m.Owner, m.LookInto = a.p.Caller.UID, a.p.With
		return do(m)
	})
}

func (a *app) print(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return err
}

// say prints to stderr, which QEMU's users see.
func (a *app) say(text string) { console.Say(a.err, "qemu-netup", text) }
