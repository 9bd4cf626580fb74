//go:build armbe || arm64be || m68k || mips || mips64 || mips64p32 || ppc || ppc64 || s390 || s390x || shbe || sparc || sparc64

package virtq

import "math/bits"

// little32 and little64 convert between a word of a ring and one of this machine, which is
// big-endian.
func little32(v uint32) uint32 { return bits.ReverseBytes32(v) }

func little64(v uint64) uint64 { return bits.ReverseBytes64(v) }
