package virtq

import (
	"math/bits"

	"golang.org/x/sys/cpu"
)

// little32 and little64 convert between a word of a ring and one of this machine.
func little32(v uint32) uint32 {
	if cpu.IsBigEndian {
		return bits.ReverseBytes32(v)
	}
	return v
}

func little64(v uint64) uint64 {
	if cpu.IsBigEndian {
		return bits.ReverseBytes64(v)
	}
	return v
}
