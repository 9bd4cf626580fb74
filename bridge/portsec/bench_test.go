package portsec_test

import (
	"testing"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
)

func BenchmarkVerdict(b *testing.B) {
	for _, c := range portsectest.Table() {
		switch c.Name {
		case "mac only", "ipv4", "tcp4", "arp", "ipv6", "tcp6", "nd-ns", "mac-spoof", "ip-spoof", "network v6":
		default:
			continue
		}
		b.Run(c.Name, func(b *testing.B) {
			checker := portsec.NewChecker(c.Config)
			b.ReportAllocs()
			for b.Loop() {
				if checker.Verdict(c.Frame) != c.Want {
					b.Fatal("another verdict")
				}
			}
		})
	}
}
