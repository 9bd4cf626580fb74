package launch

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/vmm/qemu"
)

// VMM says how the program of a command line is given its NICs.
type VMM string

const (
	// VMMAuto is QEMU, by its name or its arguments, behind any number of wrappers that are known;
	// else whoever has a [Placeholder] among its arguments, or VMNET_ARGS or VMNET_JSON.
	VMMAuto VMM = "auto"
	// VMMQEMU is QEMU whatever it is called: it takes arguments at its end.
	VMMQEMU VMM = "qemu"
	// VMMEnv is a program that reads VMNET_ARGS or VMNET_JSON by itself.
	VMMEnv VMM = "env"
)

// Find is QEMU's own part of a command line, from its program on; nil where that is not QEMU's, or
// cannot be told from what stands before it, and [Placeholder] or VMNET_ARGS says where the NICs
// go. The program is given a name by which package qemu knows it. target is what a program's path
// leads to, by its links; nil touches no file.
//
// A command line of which it is not certain that the NICs will reach a guest is an error that Is
// [ErrInvalid].
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

type finder struct {
	vmm    VMM
	argv   []string
	target func(program string) string
}

// told reports that the command line says itself where the NICs go.
func (f *finder) told() bool {
	return f.vmm == VMMEnv || placeholder(f.argv) > 0 || f.vmm != VMMQEMU && slices.ContainsFunc(f.argv[1:], func(arg string) bool {
		return strings.Contains(arg, "VMNET_ARGS") || strings.Contains(arg, "VMNET_JSON")
	})
}

// find is the index of QEMU's program; -1 less the index of another program, behind all wrappers.
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
		at += next
	}
	return 0, fmt.Errorf("%s is followed by no program", filepath.Base(f.argv[0]))
}

func (f *finder) unknown(program string) error {
	return fmt.Errorf("%s is not known as QEMU, by its name or by its arguments, nor as a wrapper of it: the NICs might not reach the guest "+
		"(put %s where QEMU's arguments go, as in: sh -c 'exec qemu-system-x86_64 -m 1G \"$@\"' sh %[2]s; or --vmm qemu if it is QEMU, or hands what stands at its end to QEMU; or --vmm env if it reads VMNET_ARGS or VMNET_JSON)", program, Placeholder)
}

func (f *finder) resolve(program string) string {
	if f.target == nil {
		return program
	}
	return f.target(program)
}

// own is the command line from QEMU on, with a name that is known.
func (f *finder) own(at int) []string {
	argv := slices.Clone(f.argv[at:])
	for _, program := range []string{argv[0], f.resolve(argv[0])} {
		if name := nameOf(program); name != "" {
			argv[0] = name
			return argv
		}
	}
	argv[0] = "qemu" // of the host's kind
	return argv
}

// byName looks for QEMU among the arguments of a program that is not known, to read what is said of
// the guest.
func (f *finder) byName() []string {
	for at, arg := range f.argv {
		if at == 0 && nameOf(arg) != "" || isSystem(arg) {
			return f.own(at)
		}
	}
	return nil
}

// nameOf is a name by which package qemu knows a QEMU: distributions and vendors put words around
// "qemu-system-ARCH" (qemu-vanilla-system-x86_64, .qemu-system-x86_64-wrapped). It is empty for
// another program.
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

// isSystem reports whether a word is surely a QEMU's path, and no guest that is called kvm.
func isSystem(word string) bool {
	base := filepath.Base(word)
	return strings.Contains(base, "qemu") && strings.Contains(base, "system-") && !strings.ContainsAny(word, " \t\n,=")
}

// qemuOptions are QEMU's own: other programs are not known to have them with one dash.
var qemuOptions = []string{
	"machine", "M", "accel", "enable-kvm", "nodefaults", "no-user-config", "netdev", "device", "blockdev", "drive", "chardev", "qmp", "mon",
	"smp", "rtc", "smbios", "object", "display", "nographic", "vga", "daemonize", "readconfig", "serial", "hda", "cdrom", "pflash", "bios",
}

// looksLikeQEMU reports whether arguments are QEMU's, by two of its options; and not those of a
// wrapper, who names QEMU.
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
