package qemu

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// sharers are the kinds of machines whose memory a -machine memory-backend= replaces
// (default_ram_id in QEMU's hw), by the first word of their names or the one after "pc-".
var sharers = []string{"pc", "i440fx", "q35", "microvm", "virt", "pseries", "s390"}

// MayShare returns nil if a QEMU of that command line works as well with the guest's memory shared
// (SharedMemory) for its whole life, or why it may not. Nobody has asked for it, so doubts count.
func MayShare(argv []string) error {
	if _, err := SharedMemory(argv); err != nil {
		return err
	}
	machine := MachineOf(argv).Type
	words := strings.Split(machine, "-")
	if !slices.Contains(sharers, words[0]) && (len(words) < 2 || !slices.Contains(sharers, words[1])) {
		return fmt.Errorf("it is not known whether a machine %q can share its memory", machine)
	}
	for _, arg := range argv[1:] {
		if opt := "-" + strings.TrimLeft(arg, "-"); strings.HasPrefix(arg, "-") && slices.Contains(comes, opt) {
			return fmt.Errorf("with %s the guest may come from private memory (--via vhost-user if it was shared)", opt)
		}
		for _, c := range apart {
			if strings.Contains(arg, c.word) {
				return errors.New(c.why)
			}
		}
	}
	for opt, value := range valued(argv) {
		o := parseObject(value, "size")
		if opt == "m" && (o["maxmem"] != "" || o["slots"] != "") {
			return fmt.Errorf("-m %s has room for memory that is added later, which may be private", value)
		}
	}
	return nil
}

// comes are the options by which a guest begins with a state that was saved before. The names of
// its memory are part of the state.
var comes = []string{"-incoming", "-loadvm"}

// apart are words of command lines whose guests keep their memory from others, or whose devices do
// not use its addresses.
var apart = []struct{ word, why string }{
	{"confidential-guest-support", "the guest's memory is encrypted"},
	{"memory-encryption", "the guest's memory is encrypted"},
	{"iommu_platform", "the guest's devices are behind an IOMMU"},
	{"accel=xen", "Xen has the guest's memory"},
	{"-xen-", "Xen has the guest's memory"},
}
