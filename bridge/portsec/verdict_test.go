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
