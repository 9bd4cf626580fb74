package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityNamesTests checks that each test named in SECURITY.md exists in the package that its
// row names before it: "TestName", or "TestNam*" for a prefix.
func TestSecurityNamesTests(t *testing.T) {
	const root = "../.."
	text, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(?:((?:Test|Fuzz)[A-Za-z0-9]*\\*?)|([a-z]+(?:[-/][a-z]+)*))`")
	tests := 0
	for row := range strings.Lines(string(text)) {
		pkg := ""
		for _, m := range named.FindAllStringSubmatch(row, -1) {
			if m[1] == "" {
				pkg = m[2]
				continue
			}
			tests++
			if !hasTest(t, filepath.Join(root, pkg), m[1]) {
				t.Errorf("SECURITY.md names %s in %q, which does not exist", m[1], pkg)
			}
		}
	}
	if tests < 10 {
		t.Fatalf("SECURITY.md names only %d tests", tests)
	}
}

// hasTest reports whether a test file in dir has a test of that name, or of that prefix.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	name, prefix := strings.CutSuffix(name, "*")
	if !prefix {
		name += "("
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name) {
			return true
		}
	}
	return false
}
