package vswitch

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocNamesFunctions checks that the files in the documentation's table of a frame's path have
// the functions beside them.
func TestDocNamesFunctions(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	steps := 0
	for line := range strings.Lines(string(text)) {
		columns := regexp.MustCompile(` {2,}`).Split(strings.TrimSpace(line), 3)
		if len(columns) != 3 || !strings.HasPrefix(line, "//\t") {
			continue
		}
		steps++
		_, function, _ := strings.Cut(columns[1], ".")
		found := false
		for _, file := range regexp.MustCompile(`\w+\.go`).FindAllString(columns[2], -1) {
			code, err := os.ReadFile(file)
			if err != nil {
				t.Error(err)
			}
			found = found || regexp.MustCompile(fmt.Sprintf(`(?m)^func \(.*\) %s\(`, function)).Match(code)
		}
		if !found {
			t.Errorf("no file of %q has %s", columns[2], columns[1])
		}
	}
	if steps < 10 {
		t.Errorf("the table has %d steps", steps)
	}
}
