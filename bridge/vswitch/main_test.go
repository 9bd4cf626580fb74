package vswitch

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) {
	if os.Getenv("VMNET_TEST_HOLDER") != "" {
		hold()
		return
	}
	leaktest.Main(m)
}

// hold is the process that stands for a guest's VMM. It has the guest's end as fd 3, and answers
// each frame.
func hold() {
	skip, b := 0, make([]byte, 1<<17)
	if os.Getenv("VMNET_TEST_HOLDER") == "tap" {
		skip = vnetLen
	}
	for {
		n, err := unix.Read(3, b)
		if err != nil && err != unix.EINTR {
			return
		}
		if f := b[:max(n, 0)]; n >= skip+etherLen &&
			!bytes.Equal(f[skip:skip+6], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) {
			var dst [6]byte
			copy(dst[:], f[skip:])
			copy(f[skip:], f[skip+6:skip+12])
			copy(f[skip+6:], dst[:])
			_, _ = unix.Write(3, f)
		}
	}
}
