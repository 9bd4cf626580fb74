package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Module is the code of a module, type-checked, without its tests.
type Module struct {
	Path     string
	Fset     *token.FileSet
	Packages map[string]*Package // by their import paths
}

// A Package is one package of the module.
type Package struct {
	Path    string
	Doc     string // the first sentence of its comment
	Imports []string
	Files   map[string]*ast.File // by their paths in the module
	Lines   int
	Types   *types.Package
	Info    *types.Info
}

// listed is what go list says about a package.
type listed struct {
	ImportPath, Dir, Export, Doc string
	GoFiles, Imports             []string
	Module                       *struct {
		Path, Dir string
		Main      bool
	}
}

// Load reads the module in dir. For packages of other modules, it reads the export data that the
// compiler wrote.
func Load(dir string) (*Module, error) {
	all, err := list(dir, "-deps", "-export", "./...")
	if err != nil {
		return nil, err
	}
	exports := map[string]string{}
	for _, l := range all {
		exports[l.ImportPath] = l.Export
	}
	m := &Module{Fset: token.NewFileSet(), Packages: map[string]*Package{}}
	others := importer.ForCompiler(m.Fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})
	for _, l := range all { // each after what it imports
		if l.Module == nil || !l.Module.Main {
			continue
		}
		m.Path = l.Module.Path
		if err := m.check(l, others); err != nil {
			return nil, fmt.Errorf("%s: %w", l.ImportPath, err)
		}
	}
	return m, nil
}

// list runs go list.
func list(dir string, args ...string) (all []listed, err error) {
	cmd := exec.Command("go",
		append([]string{"list", "-json=ImportPath,Dir,Export,Doc,GoFiles,Imports,Module"}, args...)...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.String())
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		switch err := d.Decode(&l); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("go list: %w", err)
		}
		all = append(all, l)
	}
}

func (m *Module) check(l listed, others types.Importer) error {
	p := &Package{Path: l.ImportPath, Doc: l.Doc, Imports: l.Imports, Files: map[string]*ast.File{}}
	p.Info = &types.Info{
		Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
		Selections: map[*ast.SelectorExpr]*types.Selection{},
	}
	var files []*ast.File
	for _, name := range l.GoFiles {
		text, err := os.ReadFile(filepath.Join(l.Dir, name))
		if err != nil {
			return err
		}
		path, err := filepath.Rel(l.Module.Dir, filepath.Join(l.Dir, name))
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(m.Fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		p.Files[path], p.Lines = file, p.Lines+bytes.Count(text, []byte("\n"))
		files = append(files, file)
	}
	config := types.Config{Importer: importFunc(func(path string) (*types.Package, error) {
		if own := m.Packages[path]; own != nil {
			return own.Types, nil
		}
		return others.Import(path)
	})}
	var err error
	p.Types, err = config.Check(l.ImportPath, m.Fset, files, p.Info)
	m.Packages[l.ImportPath] = p
	return err
}

type importFunc func(path string) (*types.Package, error)

func (f importFunc) Import(path string) (*types.Package, error) { return f(path) }

// short is a package's path in the module.
func (m *Module) short(pkg string) string { return strings.TrimPrefix(pkg, m.Path+"/") }
