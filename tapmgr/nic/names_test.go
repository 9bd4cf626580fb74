package nic

import (
	"regexp"
	"testing"
)

// FuzzFormed compares with the regular expressions that say the same.
func FuzzFormed(f *testing.F) {
	rules := []struct {
		name string
		is   func(string) bool
		want *regexp.Regexp
	}{
		{"NIC", func(s string) bool { return ValidNIC(s) == nil }, regexp.MustCompile(`^[a-z0-9_]{1,12}$`)},
		{"model", func(s string) bool {
			return formed(s, 64, letters+digits, "._-")
		}, regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)},
		{"option", func(s string) bool {
			return formed(s, 64, letters, digits+"._-")
		}, regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)},
		{"plain name", func(s string) bool {
			name, alt := InterfaceName(s, "n")
			return name == s+"-n" && alt == ""
		}, regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,12}$`)},
	}
	for _, s := range []string{
		"", "a", "_", "-", ".", "0", "a-", "A_", "a.b", "9a", "é", "aé", "a\xff", "\xff", "a\n", "a b", "a/b", "Z9-_.",
		"abcdefghijkl", "abcdefghijklm", "abcdefghijklmn",
		"x123456789012345678901234567890123456789012345678901234567890abc",
		"x123456789012345678901234567890123456789012345678901234567890abcd",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range rules {
			if got, want := r.is(s), r.want.MatchString(s); got != want {
				t.Errorf("%s %q: %v, want %v", r.name, s, got, want)
			}
		}
	})
}
