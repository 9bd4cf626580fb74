package arch

import (
	"strings"
	"testing"
)

// maxLines is how long a file is at most: one reads it in one go.
const maxLines = 400

// TestFilesAreShort is about files without tests. Those of testdata are programs of one file.
func TestFilesAreShort(t *testing.T) {
	for _, s := range sources(t) {
		if !strings.HasSuffix(s.path, ".go") || strings.HasSuffix(s.path, "_test.go") ||
			strings.Contains(s.path, "/testdata/") {
			continue
		}
		if n := strings.Count(string(s.text), "\n"); n > maxLines {
			t.Errorf("%s has %d lines, of at most %d: cut it by what it is about", s.path, n, maxLines)
		}
	}
}
