package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// runner is the test that runs the others; it is not one of them.
const runner = "TestLabHost"

var labTest = regexp.MustCompile(`^TestLab([^a-z]|$)`)

// pkg is a package with tests for the lab host.
type pkg struct {
	Path  string `json:"ImportPath"`
	Dir   string
	Tests []string `json:"-"`
	// The files of the two test packages that go list distinguishes.
	TestGoFiles, XTestGoFiles []string
}

// labPackages finds the packages, among those that match the patterns seen from dir,
// which have tests for the lab host.
func labPackages(ctx context.Context, dir string, patterns ...string) ([]pkg, error) {
	cmd := exec.CommandContext(ctx, "go",
		append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, patterns...)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %q: %w: %s", patterns, err, stderr.Bytes())
	}
	var found []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return found, nil
		} else if err != nil {
			return nil, err
		}
		for _, file := range append(p.TestGoFiles, p.XTestGoFiles...) {
			names, err := labTests(filepath.Join(p.Dir, file))
			if err != nil {
				return nil, err
			}
			p.Tests = append(p.Tests, names...)
		}
		if len(p.Tests) > 0 {
			found = append(found, p)
		}
	}
}

// labTests lists the tests for the lab host in a file.
func labTests(file string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && labTest.MatchString(fn.Name.Name) &&
			fn.Name.Name != runner {
			names = append(names, fn.Name.Name)
		}
	}
	return names, nil
}

// moduleRoot returns the directory that has go.mod.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	return filepath.Dir(strings.TrimSpace(string(out))), err
}

// compile builds a package's test program into dir, from what the other tests have compiled. It is
// small, since a lab host reads it slowly.
func compile(ctx context.Context, p pkg, dir string) (string, error) {
	file := filepath.Join(dir, strings.ReplaceAll(p.Path, "/", "-")+".test")
	args, cgo := []string{"test", "-c", "-ldflags=-s -w", "-o", file}, "CGO_ENABLED=0"
	if os.Getenv("VMNET_LAB_RACE") != "" {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.CommandContext(ctx, "go", append(args, p.Path)...)
	cmd.Dir, cmd.Env = p.Dir, append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go test -c %s: %w: %s", p.Path, err, out)
	}
	return file, nil
}
