package arch

import (
	"go/types"
	"strings"
	"testing"
)

// public are the packages that other modules may use. True are those whose exported functions and
// methods name types of internal packages: other modules can call them only with what they are
// given.
var public = map[string]bool{
	"tapmgr": true,
	"bridge": false, "bridge/brport": false, "macvtap": false, "macvtap/vtap": false,
	"qmp": false, "libvirt": false, "vhost": false, "testvm": false, "step": false,
	"bridge/vswitch": false, "bridge/vswitch/capture": false, "bridge/vswitch/control": false,
	"bridge/vswitch/control/server": false, "bridge/vswitch/offload": false, "bridge/vswitch/pcapng": false,
	"bridge/vswitch/vport": false,
}

func TestPublicSignatures(t *testing.T) {
	m, err := loadOwn()
	if err != nil {
		t.Fatal(err)
	}
	for pkg, known := range public {
		p := m.Packages[m.Path+"/"+pkg]
		if p == nil {
			t.Errorf("there is no package %s", pkg)
			continue
		}
		named := internals(p.Types)
		switch {
		case len(named) > 0 && !known:
			t.Errorf("%s: signatures name internal types: %s", pkg, strings.Join(named, ", "))
		case len(named) == 0 && known:
			t.Errorf("%s: no signature names an internal type any more: say so in public", pkg)
		}
		t.Logf("%s: %d signatures name internal types", pkg, len(named))
	}
}

// internals returns the exported functions and methods of a package that take or return a type of
// an internal package.
func internals(p *types.Package) (found []string) {
	look := func(f *types.Func) {
		if f.Exported() && namesInternal(f.Signature().Params()) ||
			f.Exported() && namesInternal(f.Signature().Results()) {
			found = append(found, FuncName(f))
		}
	}
	for _, name := range p.Scope().Names() {
		switch o := p.Scope().Lookup(name).(type) {
		case *types.Func:
			look(o)
		case *types.TypeName:
			if !o.Exported() {
				continue
			}
			methods := types.NewMethodSet(types.NewPointer(o.Type()))
			for i := range methods.Len() {
				look(methods.At(i).Obj().(*types.Func))
			}
		}
	}
	return found
}

func namesInternal(t types.Type) bool {
	switch t := t.(type) {
	case *types.Tuple:
		for i := range t.Len() {
			if namesInternal(t.At(i).Type()) {
				return true
			}
		}
	case *types.Named:
		return t.Obj().Pkg() != nil && strings.HasPrefix(t.Obj().Pkg().Path(), "vmnet/internal/")
	case *types.Alias:
		return namesInternal(types.Unalias(t))
	case *types.Map:
		return namesInternal(t.Key()) || namesInternal(t.Elem())
	case *types.Signature:
		return namesInternal(t.Params()) || namesInternal(t.Results())
	case interface{ Elem() types.Type }: // pointers, slices, arrays, channels
		return namesInternal(t.Elem())
	}
	return false
}
