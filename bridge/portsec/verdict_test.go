package portsec_test

import (
	"testing"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
)

func TestTable(t *testing.T) {
	names := map[string]bool{}
	for _, c := range portsectest.Table() {
		if names[c.Name] {
			t.Errorf("%s is there twice", c.Name)
		}
		names[c.Name] = true
		if err := c.Config.Validate(); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		if got := portsec.NewChecker(c.Config).Verdict(c.Frame); got != c.Want {
			t.Errorf("%s: %s, want %s", c.Name, got, c.Want)
		}
	}
}

// TestKnown: the verdicts on random frames are those that follow from how they were built.
func TestKnown(t *testing.T) {
	random, checker := portsectest.NewRandom(7), portsec.NewChecker(portsectest.Config())
	var seen [portsec.Reasons]int
	for range 50_000 {
		c := random.Known()
		got := checker.Verdict(c.Frame)
		if got != c.Want {
			t.Fatalf("%s: %x: %s, want %s", c.Name, c.Frame, got, c.Want)
		}
		seen[got]++
	}
	t.Log(seen)
}
