package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// notAWait begins a comment that says why a test sleeps, on the line of the sleep or above it.
const notAWait = "// not a wait: "

// TestNoTestWaitsBySleeping wants tests to wait for a condition, by nstest.Eventually: a pause that
// is long enough on one machine is too short on another. In a bubble of testing/synctest the clock
// does not depend on the machine.
func TestNoTestWaitsBySleeping(t *testing.T) {
	files := 0
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != "../..":
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files++
		all := token.NewFileSet()
		f, err := parser.ParseFile(all, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		for _, line := range bareSleeps(all, f) {
			t.Errorf("%s:%d: a test waits by sleeping: use nstest.Eventually, or say in a comment why not (%q)",
				path, line, notAWait)
		}
		return nil
	})
	if err != nil || files < 100 {
		t.Fatalf("%d files: %v", files, err)
	}
}

// bareSleeps returns the lines of a file that sleep without such a comment.
func bareSleeps(all *token.FileSet, f *ast.File) (lines []int) {
	if slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing/synctest"` }) {
		return nil
	}
	said := map[int]bool{}
	for _, group := range f.Comments {
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, notAWait) {
				line := all.Position(group.End()).Line
				said[all.Position(c.Pos()).Line], said[line], said[line+1] = true, true, true
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
			pkg, ok := s.X.(*ast.Ident)
			if line := all.Position(s.Pos()).Line; ok && pkg.Name == "time" && !said[line] {
				lines = append(lines, line)
			}
		}
		return true
	})
	return lines
}

func TestBareSleeps(t *testing.T) {
	for source, want := range map[string][]int{
		"func f() { time.Sleep(1) }":                                           {2},
		"func f() {\n\tfor ; ; time.Sleep(1) {\n\t}\n}":                        {3},
		"func f() { time.Sleep(1) } // it is slow":                             {2},
		"func f() {\n// not a wait: it hangs\ntime.Sleep(1)\ntime.Sleep(1)\n}": {5},
		"func f() { time.Sleep(1) } // not a wait: it hangs":                   nil,
		"var sleep = time.Sleep":                                               {2},
		"import \"testing/synctest\"\nfunc f() { time.Sleep(1) }":              nil,
	} {
		all := token.NewFileSet()
		f, err := parser.ParseFile(all, "x_test.go", "package x\n"+source, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if got := bareSleeps(all, f); !slices.Equal(got, want) {
			t.Errorf("%s: lines %v, want %v", source, got, want)
		}
	}
}
