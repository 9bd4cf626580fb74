package arch

import (
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is a small module, by its files.
var module = map[string]string{
	"go.mod":          "module m\n\ngo 1.26\n",
	"cmd/p/main.go":   "package main\n\nimport \"m/a\"\n\nfunc main() { run() }\n\nvar hooks = []func(){a.Hooked}\n",
	"cmd/p/run.go":    "package main\n\nimport \"m/a\"\n\nfunc run() {\n\tfor _, h := range hooks {\n\t\th()\n\t}\n\ta.Use(&a.One{})\n}\n",
	"cmd/p/unused.go": "package main\n\nimport \"m/a\"\n\nfunc unused() { a.Unused() }\n\nvar _ = a.Constant\n",
	"a/a.go":          "package a\n\nimport \"m/low\"\n\ntype Kind interface{ Do() }\n\nfunc Use(k Kind) { k.Do(); low.Do() }\n",
	"a/one.go":        "package a\n\ntype One struct{}\n\nfunc (*One) Do() { deep[int](0) }\n",
	"a/two.go":        "package a\n\ntype two struct{ One }\n\nfunc (two) Do() {}\n",
	"a/hooked.go":     "package a\n\nfunc Hooked() {}\n",
	"a/deep.go":       "package a\n\nfunc deep[T any](T) { func() { closed() }() }\n",
	"a/closed.go":     "package a\n\nfunc closed() { _ = One{} }\n\nconst Constant = 1\n",
	"a/unused.go":     "package a\n\nfunc Unused() {}\n",
	"low/low.go":      "package low\n\nfunc Do() { more() }\n",
	"low/more.go":     "package low\n\nfunc more() {}\n",
}

// loadOwn loads this module once, for several tests.
var loadOwn = sync.OnceValues(func() (*Module, error) { return Load("../..") })

func loadSmall(t *testing.T) *Module {
	t.Helper()
	dir := t.TempDir()
	for path, text := range module {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFilesToOpen(t *testing.T) {
	m := loadSmall(t)
	rooms, all, err := m.FilesToOpen(m.Graph(), Verb{"p", [][2]string{{"cmd/p", "main"}}, []string{"cmd", "a"}})
	want := strings.Fields("a/a.go a/closed.go a/deep.go a/hooked.go a/one.go a/two.go cmd/p/main.go cmd/p/run.go")
	if err != nil || !slices.Equal(rooms, want) {
		t.Errorf("%v, %v, want %v", rooms, err, want)
	}
	if want := append(want, "low/low.go", "low/more.go"); err != nil || !slices.Equal(all, want) {
		t.Errorf("%v, want %v", all, want)
	}
	if _, _, err := m.FilesToOpen(m.Graph(), Verb{"p", [][2]string{{"cmd/p", "gone"}}, nil}); err == nil {
		t.Error("an entry that there is not was found")
	}
	if f, ok := m.Func("m/a", "One.Do").(*types.Func); !ok || FuncName(f) != "One.Do" {
		t.Error("there is no One.Do")
	}
}

func TestKnot(t *testing.T) {
	m := loadSmall(t)
	if got, want := m.Knot(m.Packages["m/a"]),
		[]string{"a/closed.go", "a/deep.go", "a/one.go"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := m.Knot(m.Packages["m/low"]); len(got) != 1 {
		t.Errorf("low has the knot %v", got)
	}
}

// TestVerbs checks that the entry functions of all verbs exist.
func TestVerbs(t *testing.T) {
	m, err := loadOwn()
	if err != nil {
		t.Fatal(err)
	}
	g := m.Graph()
	for _, v := range Verbs {
		if rooms, _, err := m.FilesToOpen(g, v); err != nil || len(rooms) < 5 {
			t.Errorf("%s: %d files, %v", v.Name, len(rooms), err)
		}
	}
}
