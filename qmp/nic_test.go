package qmp

import (
	"regexp"
	"testing"
)

// FuzzWellFormed compares with the regular expression that says the same.
func FuzzWellFormed(f *testing.F) {
	want := regexp.MustCompile(`^[A-Za-z][-._A-Za-z0-9]*$`)
	for _, s := range []string{
		"", "a", "Z", "-", "9", "a-._9Z", "a b", "a\n", "é", "aé", "\xff", "a\xff",
		"a/", "vmnet-net0-netdev",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if got := wellFormed(id); got != want.MatchString(id) {
			t.Errorf("%q: %v", id, got)
		}
	})
}
