package arch

import (
	"go/ast"
	"go/types"
	"slices"
)

// A Graph holds which functions of a module each function may call. Its nodes are functions and
// package variables: a function that mentions one may call it, or what its initial value mentions.
// A call of a method of one of the module's interfaces leads to that method of each type of the
// module that implements it.
type Graph struct {
	edges map[types.Object][]types.Object
	file  map[types.Object]string // that declares it
}

// Graph returns the module's call graph.
func (m *Module) Graph() *Graph {
	g := &Graph{edges: map[types.Object][]types.Object{}, file: map[types.Object]string{}}
	concrete := m.concreteTypes()
	for _, p := range m.Packages {
		for path, file := range p.Files {
			for _, decl := range file.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					from := p.Info.Defs[d.Name]
					g.file[from] = path
					g.edges[from] = m.mentions(p, d, concrete)
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						v, ok := spec.(*ast.ValueSpec)
						if !ok {
							continue
						}
						for _, name := range v.Names {
							from := p.Info.Defs[name]
							if _, ok := from.(*types.Var); ok {
								g.edges[from] = m.mentions(p, v, concrete)
							}
						}
					}
				}
			}
		}
	}
	return g
}

// concreteTypes returns the module's named types that are not interfaces.
func (m *Module) concreteTypes() (all []*types.Named) {
	for _, p := range m.Packages {
		for _, name := range p.Types.Scope().Names() {
			if t, ok := p.Types.Scope().Lookup(name).(*types.TypeName); ok && !t.IsAlias() {
				if named, ok := t.Type().(*types.Named); ok && !types.IsInterface(named) {
					all = append(all, named)
				}
			}
		}
	}
	return all
}

// mentions returns the module's functions and package variables that a declaration mentions.
func (m *Module) mentions(p *Package, decl ast.Node, concrete []*types.Named) (all []types.Object) {
	ast.Inspect(decl, func(n ast.Node) bool {
		id, ok := n.(*ast.Ident)
		if !ok {
			return true
		}
		switch used := p.Info.Uses[id].(type) {
		case *types.Func:
			switch recv := used.Signature().Recv(); {
			case !m.owns(used):
			case recv != nil && types.IsInterface(recv.Type()):
				all = append(all, implementations(used, recv.Type(), concrete)...)
			default:
				all = append(all, used.Origin())
			}
		case *types.Var:
			if m.owns(used) && !used.IsField() && used.Parent() == used.Pkg().Scope() {
				all = append(all, used)
			}
		}
		return true
	})
	return all
}

func (m *Module) owns(o types.Object) bool {
	return o.Pkg() != nil && m.Packages[o.Pkg().Path()] != nil
}

// implementations returns the methods that a call of an interface method may reach.
func implementations(method *types.Func, of types.Type, concrete []*types.Named) (all []types.Object) {
	iface, ok := of.Underlying().(*types.Interface)
	if !ok {
		return nil
	}
	for _, t := range concrete {
		if t.TypeParams() != nil || !types.Implements(types.NewPointer(t), iface) {
			continue
		}
		o, _, _ := types.LookupFieldOrMethod(types.NewPointer(t), true, method.Pkg(), method.Name())
		if f, ok := o.(*types.Func); ok {
			all = append(all, f.Origin())
		}
	}
	return all
}

// Files returns the sorted files that declare a function that entry may call. If enter is false for
// a function of another package, its file counts, but what it calls does not.
func (g *Graph) Files(entry types.Object, enter func(types.Object) bool) []string {
	seen := map[types.Object]bool{}
	files := map[string]bool{}
	var visit func(types.Object)
	visit = func(o types.Object) {
		if seen[o] {
			return
		}
		seen[o] = true
		if file := g.file[o]; file != "" {
			files[file] = true
		}
		if !enter(o) {
			return
		}
		for _, next := range g.edges[o] {
			visit(next)
		}
	}
	visit(entry)
	all := make([]string, 0, len(files))
	for f := range files {
		all = append(all, f)
	}
	slices.Sort(all)
	return all
}

// Func finds a function or a method ("Type.Method") of a package; nil if there is none.
func (m *Module) Func(pkg, name string) types.Object {
	p := m.Packages[pkg]
	if p == nil {
		return nil
	}
	for id, o := range p.Info.Defs {
		f, ok := o.(*types.Func)
		if !ok || id == nil {
			continue
		}
		if FuncName(f) == name {
			return f
		}
	}
	return nil
}

// FuncName returns a function's name in its package: "f" or "Type.Method".
func FuncName(f *types.Func) string {
	recv := f.Signature().Recv()
	if recv == nil {
		return f.Name()
	}
	t := recv.Type()
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	if n, ok := t.(*types.Named); ok {
		return n.Obj().Name() + "." + f.Name()
	}
	return f.Name()
}
