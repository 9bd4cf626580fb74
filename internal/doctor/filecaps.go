package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fileCaps are a file's capabilities. A program gets Permitted when it is executed, and has them in
// effect at once if Effective (capabilities(7)).
type fileCaps struct {
	Permitted uint64
	Effective bool
	Root      uint32 // uid of the root user of the user namespace that they are valid in; 0 for all
}

const capsAttr = "security.capability"

// readCaps reads a file's capabilities; ok is false if it has none.
func readCaps(path string) (caps fileCaps, ok bool, err error) {
	buf := make([]byte, 64)
	n, err := unix.Getxattr(path, capsAttr, buf)
	switch {
	case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP):
		return fileCaps{}, false, nil
	case err != nil:
		return fileCaps{}, false, fmt.Errorf("read %s of %s: %w", capsAttr, path, err)
	}
	caps, err = parseCaps(buf[:n])
	return caps, err == nil, err
}

// Parts of struct vfs_cap_data and vfs_ns_cap_data (include/uapi/linux/capability.h):
// 32-bit words, little-endian: revision and flag, then permitted and inheritable, the
// lower halves first, then in revision 3 the root's uid.
const (
	capsRevision  = 0xff000000
	capsRevision1 = 0x01000000
	capsRevision2 = 0x02000000
	capsRevision3 = 0x03000000
	capsEffective = 1
)

func parseCaps(b []byte) (fileCaps, error) {
	if len(b) < 4 {
		return fileCaps{}, fmt.Errorf("%s of %d bytes: too short", capsAttr, len(b))
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	size := map[uint32]int{capsRevision1: 12, capsRevision2: 20, capsRevision3: 24}[word(0)&capsRevision]
	if size == 0 || len(b) != size {
		return fileCaps{}, fmt.Errorf("%s of revision %#x and %d bytes: unknown",
			capsAttr, word(0)&capsRevision, len(b))
	}
	caps := fileCaps{Permitted: uint64(word(1)), Effective: word(0)&capsEffective != 0}
	if size >= 20 {
		caps.Permitted |= uint64(word(3)) << 32
	}
	if size == 24 {
		caps.Root = word(5)
	}
	return caps, nil
}

// has reports whether a capability, by its number, is permitted.
func (c fileCaps) has(number int) bool { return c.Permitted&(1<<number) != 0 }

// capNames are the capabilities that the helper uses.
var capNames = map[int]string{
	unix.CAP_NET_ADMIN: "cap_net_admin", unix.CAP_SYS_ADMIN: "cap_sys_admin",
	unix.CAP_MKNOD: "cap_mknod", unix.CAP_BPF: "cap_bpf", unix.CAP_PERFMON: "cap_perfmon",
}

// String formats them as setcap(8) does, with numbers for those that the helper does not use.
func (c fileCaps) String() string {
	var names []string
	for i := range 64 {
		switch {
		case c.has(i) && capNames[i] != "":
			names = append(names, capNames[i])
		case c.has(i):
			names = append(names, strconv.Itoa(i))
		}
	}
	how := "+p"
	if c.Effective {
		how = "+ep"
	}
	if c.Root != 0 {
		how += fmt.Sprintf(" in the user namespace of uid %d", c.Root)
	}
	return strings.Join(names, ",") + how
}
