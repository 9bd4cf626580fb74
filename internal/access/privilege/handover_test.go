package privilege

import (
	"slices"
	"strings"
	"testing"
)

// No variable keeps its name in between, and all of them arrive.
func TestMaskedEnvironment(t *testing.T) {
	env := []string{
		"LD_PRELOAD=/x.so", "GODEBUG=x=1", "GOTRACEBACK=crash", "A=1=2", "=", "NOVALUE",
		"_=/bin/sh", "VMNET_HANDED_OVER=1",
	}
	sent := masked(env)
	for _, s := range sent[2:] {
		if !strings.HasPrefix(s, mask) {
			t.Errorf("%q", s)
		}
	}
	if got := unmask(sent); !slices.Equal(got, env) {
		t.Errorf("%q, want %q", got, env)
	}
	if got := unmask(env); !slices.Equal(got, env) {
		t.Errorf("an environment of somebody else's: %q, want %q", got, env)
	}
	if got := unmask(masked(nil)); len(got) != 0 {
		t.Errorf("an empty one: %q", got)
	}
}
