package arch

import (
	"go/doc"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// private are the directories of packages that are no part of the API. libvirttest and portsectest
// are for this module's own tests.
var private = []string{
	"internal", "cmd", "testvm/guest", "testvm/agent", "libvirt/libvirttest", "bridge/portsec/portsectest",
}

// documented are the public packages at which other modules begin. Each has an example that runs.
var documented = []string{
	"bridge", "bridge/brport", "libvirt", "macvtap", "macvtap/vtap", "qmp", "step", "tapmgr", "tapmgr/nic",
	"testvm", "vhost",
}

func isPublic(pkg string, p *Package) bool { return !Under(pkg, private) && p.Types.Name() != "main" }

// TestPublicAPI looks at each package that other modules may import: its functions, methods,
// variables and constants, and the exported fields of its types. godoc shows all of them.
func TestPublicAPI(t *testing.T) {
	m, err := loadOwn()
	if err != nil {
		t.Fatal(err)
	}
	for path, p := range m.Packages {
		pkg := m.short(path)
		if !isPublic(pkg, p) {
			continue
		}
		if named := internals(p.Types); len(named) > 0 {
			t.Errorf("%s names internal types: %s", pkg, strings.Join(named, ", "))
		}
	}
}

// TestPublicPackagesAreExplained requires a comment and an example of each public package.
func TestPublicPackagesAreExplained(t *testing.T) {
	m, err := loadOwn()
	if err != nil {
		t.Fatal(err)
	}
	for path, p := range m.Packages {
		pkg := m.short(path)
		if isPublic(pkg, p) && !strings.HasPrefix(p.Doc, "Package "+p.Types.Name()+" ") {
			t.Errorf("%s has no comment that begins with \"Package %s\"", pkg, p.Types.Name())
		}
	}
	for _, pkg := range documented {
		if !hasExample(t, pkg) {
			t.Errorf("%s has no example that is compared with its output, and no TestLiveExample that runs one", pkg)
		}
	}
}

// hasExample reports whether an example of a package is run, and not only compiled.
func hasExample(t *testing.T, pkg string) bool {
	t.Helper()
	paths, err := filepath.Glob("../../" + pkg + "/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		runs := func(e *doc.Example) bool { return e.Output != "" }
		if file.Scope.Lookup("TestLiveExample") != nil || slices.ContainsFunc(doc.Examples(file), runs) {
			return true
		}
	}
	return false
}

// internals returns the exported identifiers of a package that name a type of an internal package.
func internals(p *types.Package) (found []string) {
	add := func(name string, t types.Type) {
		if token.IsExported(name[strings.LastIndex(name, ".")+1:]) && namesInternal(t) {
			found = append(found, name)
		}
	}
	for _, name := range p.Scope().Names() {
		if !token.IsExported(name) {
			continue
		}
		o := p.Scope().Lookup(name)
		def, ok := o.(*types.TypeName)
		if !ok { // a function, variable or constant
			add(name, o.Type())
			continue
		}
		if def.IsAlias() {
			add(name, types.Unalias(o.Type()))
			continue
		}
		methods := types.NewMethodSet(types.NewPointer(o.Type()))
		for i := range methods.Len() {
			f := methods.At(i).Obj()
			add(name+"."+f.Name(), f.Type())
		}
		fields, ok := o.Type().Underlying().(*types.Struct)
		if !ok {
			add(name, o.Type().Underlying())
			continue
		}
		for i := range fields.NumFields() {
			f := fields.Field(i)
			add(name+"."+f.Name(), f.Type())
		}
	}
	return found
}

// namesInternal reports whether a type, as it is written, names one of an internal package.
func namesInternal(t types.Type) bool {
	switch t := t.(type) {
	case *types.Tuple:
		for i := range t.Len() {
			if namesInternal(t.At(i).Type()) {
				return true
			}
		}
	case *types.Named:
		for i := range t.TypeArgs().Len() {
			if namesInternal(t.TypeArgs().At(i)) {
				return true
			}
		}
		return t.Obj().Pkg() != nil && strings.HasPrefix(t.Obj().Pkg().Path(), "vmnet/internal/")
	case *types.Alias:
		return namesInternal(types.Unalias(t))
	case *types.Map:
		return namesInternal(t.Key()) || namesInternal(t.Elem())
	case *types.Signature:
		return namesInternal(t.Params()) || namesInternal(t.Results())
	case *types.Struct:
		for i := range t.NumFields() {
			if t.Field(i).Exported() && namesInternal(t.Field(i).Type()) {
				return true
			}
		}
	case *types.Interface:
		for i := range t.NumMethods() {
			if t.Method(i).Exported() && namesInternal(t.Method(i).Type()) {
				return true
			}
		}
	case interface{ Elem() types.Type }: // pointers, slices, arrays, channels
		return namesInternal(t.Elem())
	}
	return false
}
