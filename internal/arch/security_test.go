package arch

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityNamesTests checks that each test named in SECURITY.md exists: "TestName", or
// "TestNam*" for a prefix.
func TestSecurityNamesTests(t *testing.T) {
	const root = "../.."
	text, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]*\\*?)`").FindAllSubmatch(text, -1)
	if len(named) < 10 {
		t.Fatalf("SECURITY.md names only %d tests", len(named))
	}
	var code bytes.Buffer
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := os.ReadFile(path)
		code.Write(file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range named {
		name, prefix := strings.CutSuffix(string(m[1]), "*")
		if !prefix {
			name += "("
		}
		if !bytes.Contains(code.Bytes(), []byte("\nfunc "+name)) {
			t.Errorf("SECURITY.md names %s, which there is not", m[1])
		}
	}
}
