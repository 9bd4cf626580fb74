package portsec_test

import (
	"testing"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
)

// TestSuffices cuts frames anywhere. Where the start is said to suffice, its verdict is that of the
// whole frame.
func TestSuffices(t *testing.T) {
	t.Parallel()
	cut := func(c *portsec.Checker, name string, frame []byte) {
		want := c.Verdict(frame)
		for n := range frame {
			if portsec.Suffices(frame[:n]) && c.Verdict(frame[:n]) != want {
				t.Errorf("%s: the first %d of %d bytes: %s, all: %s", name, n, len(frame), c.Verdict(frame[:n]), want)
			}
		}
	}
	for _, c := range portsectest.Table() {
		checker := portsec.NewChecker(c.Config)
		cut(checker, c.Name, c.Frame)
		cut(checker, c.Name+", longer", append(c.Frame[:len(c.Frame):len(c.Frame)], make([]byte, 300)...))
	}
	r := portsectest.NewRandom(1)
	for _, cfg := range portsectest.Configs() {
		checker := portsec.NewChecker(cfg)
		for range 300 {
			cut(checker, "random", r.Next())
		}
	}
}

// TestSufficesForOrdinaryFrames: of long frames, only those of ICMP over IPv6 and with further
// headers are looked at as a whole.
func TestSufficesForOrdinaryFrames(t *testing.T) {
	t.Parallel()
	frame := func(kind uint16, first byte, next byte) []byte {
		b := make([]byte, 246)
		b[12], b[13], b[14], b[14+6] = byte(kind>>8), byte(kind), first, next
		return b
	}
	for want, all := range map[bool][][]byte{
		true: {
			frame(0x0800, 0x45, 0), frame(0x86dd, 0x60, 6), frame(0x86dd, 0x60, 17), frame(0x0806, 0, 0),
			frame(0x88cc, 0, 0),
		},
		false: {frame(0x86dd, 0x60, 58), frame(0x86dd, 0x60, 0), frame(0x86dd, 0x60, 44)},
	} {
		for _, b := range all {
			if portsec.Suffices(b) != want {
				t.Errorf("%x: want %v", b[:30], want)
			}
		}
	}
}
