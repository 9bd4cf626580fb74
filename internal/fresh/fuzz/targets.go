package main

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// target is a fuzz test.
type target struct {
	dir  string // of its package, in the module
	name string
}

// find returns all functions FuzzX of a module.
func find(root string) (targets []target, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if path != root && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") || isModule(path)) {
				return filepath.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		names, err := fuzzTests(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, name := range names {
			targets = append(targets, target{dir, name})
		}
		return err
	})
	return targets, err
}

// isModule reports whether a directory is another module.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// fuzzTests returns the functions FuzzX of a file.
func fuzzTests(path string) (names []string, err error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Fuzz") {
			names = append(names, f.Name.Name)
		}
	}
	return names, nil
}

// turns is a directory that has an empty file for each fuzz test, of the time of its last turn.
type turns string

func (d turns) file(t target) string {
	return filepath.Join(string(d), strings.ReplaceAll(t.dir, "/", "_")+"."+t.name)
}

// next returns those whose turn it is: at most this many, or all for 0. One that has never had a
// turn comes first.
func (d turns) next(targets []target, most int) []target {
	when := map[target]time.Time{}
	for _, t := range targets {
		if info, err := os.Stat(d.file(t)); err == nil {
			when[t] = info.ModTime()
		}
	}
	chosen := slices.Clone(targets)
	rand.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	slices.SortStableFunc(chosen, func(a, b target) int {
		return cmp.Compare(when[a].UnixNano(), when[b].UnixNano())
	})
	if most > 0 {
		chosen = chosen[:min(most, len(chosen))]
	}
	return chosen
}

// had notes a turn.
func (d turns) had(t target, now time.Time) error {
	err := os.MkdirAll(string(d), 0o755)
	if err == nil {
		err = os.WriteFile(d.file(t), nil, 0o644)
	}
	if err = errors.Join(err, os.Chtimes(d.file(t), now, now)); err != nil {
		return fmt.Errorf("note that %s %s has run: %w", t.dir, t.name, err)
	}
	return nil
}
