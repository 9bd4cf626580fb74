package launch

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/vmm/qemu"
)

// VMM says how the program of a command line receives its NICs.
type VMM string

const (
	// VMMAuto detects QEMU, by its name or its arguments, behind any number of known wrappers;
	// otherwise a program with a [Placeholder], VMNET_ARGS or VMNET_JSON among its arguments.
	VMMAuto VMM = "auto"
	// VMMQEMU is QEMU under any name: it takes arguments at its end.
	VMMQEMU VMM = "qemu"
	// VMMEnv is a program that reads VMNET_ARGS or VMNET_JSON by itself.
	VMMEnv VMM = "env"
)

// Find returns QEMU's own part of a command line, from its program on. It returns nil if the
// program is not QEMU, or if QEMU's part cannot be found and [Placeholder] or VMNET_ARGS says where
// the NICs go. The returned program has a name by which package qemu recognises it. target resolves
// the links of a program's path; if it is nil, Find touches no file.
//
// If it is not certain that the NICs will reach a guest, the error matches [ErrInvalid] with
// errors.Is.
func Find(vmm VMM, argv []string, target func(program string) string) ([]string, error) {
	f := finder{vmm: vmm, argv: argv, target: target}
	at, err := f.find()
	if err == nil && at < 0 && !f.told() {
		err = f.unknown(argv[-at-1])
	}
	switch {
	case err != nil && f.told() && !isClosing(err):
		return f.byName(), nil
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	case at < 0:
		return f.byName(), nil
	}
	return f.own(at), nil
}

// MayShare returns nil if the QEMU of a command line works as well with its guest's memory shared
// with a switch of its user, or why it may not. guest is QEMU's own part, with the files that it
// reads expanded; nil if unknown.
func MayShare(vmm VMM, argv, guest []string, target func(program string) string) error {
	f := finder{vmm: vmm, argv: argv, target: target}
	switch at, err := f.find(); {
	case err != nil || at < 0 || guest == nil:
		return errors.New("what starts QEMU is not known to pass its arguments on as they are")
	case f.apart != "":
		return fmt.Errorf("QEMU behind %s may be apart from the switch", f.apart)
	}
	return qemu.MayShare(guest)
}

type finder struct {
	vmm    VMM
	argv   []string
	target func(program string) string
	apart  string // the wrapper that find has passed and that keeps QEMU apart; empty for none
}

// told reports whether the command line itself says where the NICs go.
func (f *finder) told() bool {
	return f.vmm == VMMEnv || placeholder(f.argv) > 0 ||
		f.vmm != VMMQEMU && slices.ContainsFunc(f.argv[1:], func(arg string) bool {
			return strings.Contains(arg, "VMNET_ARGS") || strings.Contains(arg, "VMNET_JSON")
		})
}

// find returns the index of QEMU's program, behind all wrappers; for another program at index i,
// -1-i.
func (f *finder) find() (at int, err error) {
	for at = 0; at < len(f.argv); {
		w, known := wrappers[filepath.Base(f.argv[at])]
		switch {
		case nameOf(f.argv[at]) != "", nameOf(f.resolve(f.argv[at])) != "":
			return at, nil
		case !known && (f.vmm == VMMQEMU || looksLikeQEMU(f.argv[at+1:])):
			return at, nil
		case !known:
			return -1 - at, nil
		}
		next, err := w.skip(f.argv[at:])
		if err != nil {
			return 0, err
		}
		if w.apart {
			f.apart = filepath.Base(f.argv[at])
		}
		at += next
	}
	return 0, fmt.Errorf("no program follows %s", filepath.Base(f.argv[0]))
}

func (f *finder) unknown(program string) error {
	return fmt.Errorf("%s is not known as QEMU or as a wrapper of it "+
		"(put %s where QEMU's arguments go, or use --vmm qemu or --vmm env: see qemu-netup(8))",
		program, Placeholder)
}

func (f *finder) resolve(program string) string {
	if f.target == nil {
		return program
	}
	return f.target(program)
}

// own returns the command line from QEMU on, with a recognised name.
func (f *finder) own(at int) []string {
	argv := slices.Clone(f.argv[at:])
	for _, program := range []string{argv[0], f.resolve(argv[0])} {
		if name := nameOf(program); name != "" {
			argv[0] = name
			return argv
		}
	}
	argv[0] = "qemu" // of the host's architecture
	return argv
}

// byName looks for QEMU among the arguments of an unknown program, to read what they say about the
// guest.
func (f *finder) byName() []string {
	for at, arg := range f.argv {
		if at == 0 && nameOf(arg) != "" || isSystem(arg) {
			return f.own(at)
		}
	}
	return nil
}

// nameOf returns a name by which package qemu recognises a QEMU: distributions and vendors put
// words around "qemu-system-ARCH" (qemu-vanilla-system-x86_64, .qemu-system-x86_64-wrapped). It
// returns "" for another program.
func nameOf(program string) string {
	if qemu.IsQEMU(program) {
		return filepath.Base(program)
	}
	if !isSystem(program) {
		return ""
	}
	_, arch, _ := strings.Cut(filepath.Base(program), "system-")
	arch, _, _ = strings.Cut(arch, "-")
	return "qemu-system-" + arch
}

// isSystem reports whether a word is certainly a QEMU's path, and not a guest named kvm.
func isSystem(word string) bool {
	base := filepath.Base(word)
	return strings.Contains(base, "qemu") && strings.Contains(base, "system-") && !strings.ContainsAny(word, " \t\n,=")
}

// qemuOptions are options of QEMU that no other known program has with one dash.
var qemuOptions = []string{
	"machine", "M", "accel", "enable-kvm", "nodefaults", "no-user-config", "netdev", "device", "blockdev", "drive",
	"chardev", "qmp", "mon",
	"smp", "rtc", "smbios", "object", "display", "nographic", "vga", "daemonize", "readconfig", "serial", "hda",
	"cdrom", "pflash", "bios",
}

// looksLikeQEMU reports whether arguments are QEMU's, by two of its options, and not those of a
// wrapper that names QEMU.
func looksLikeQEMU(args []string) bool {
	if slices.ContainsFunc(args, isSystem) {
		return false
	}
	seen := map[string]bool{}
	for _, arg := range args {
		if opt, ok := strings.CutPrefix(arg, "-"); ok && slices.Contains(qemuOptions, opt) {
			seen[opt] = true
		}
	}
	return len(seen) >= 2
}
