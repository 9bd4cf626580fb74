package nic

import (
	"fmt"
	"maps"
	"slices"
)

// ValidHash reports whether a text can be an optionsHash.
func ValidHash(text string) bool { return text == "" || formed(text, hashLen, letters+digits, "") }

// OptionsHash returns what a record keeps of the rest of a Spec: enough to see that two differ.
func (s Spec) OptionsHash() string {
	var texts []string
	for _, k := range slices.Sorted(maps.Keys(s.DeviceOptions)) {
		texts = append(texts, k, s.DeviceOptions[k])
	}
	if l := s.Lower; l != nil && (l.NoPromisc || l.Flag != "" || len(l.Sources)+len(l.Addrs) > 0) {
		texts = append(texts, fmt.Sprint(l.NoPromisc, l.Flag, l.Sources, l.Addrs))
	}
	if len(texts) == 0 {
		return ""
	}
	return shortHash(texts...)
}
