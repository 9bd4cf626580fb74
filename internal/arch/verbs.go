package arch

import (
	"fmt"
	"go/types"
	"path"
	"slices"
)

// A Verb is an operation of a program, with the functions at which it begins.
type Verb struct {
	Name    string
	Entries [][2]string // package and function
	Rooms   []string    // the packages that are read to understand it
}

// Verbs are those whose files are counted.
var Verbs = []Verb{
	{"vmnet attach", [][2]string{{"cmd/vmnet", "app.attachCommand"}}, verbRooms},
	{"vmnet detach", [][2]string{{"cmd/vmnet", "app.detachCommand"}}, verbRooms},
	{"vmnet list", [][2]string{{"cmd/vmnet", "app.listCommand"}}, verbRooms},
	{"vmnet reconcile", [][2]string{{"cmd/vmnet", "app.reconcileCommand"}}, verbRooms},
	{"vmnet-hook", [][2]string{{"cmd/vmnet-hook", "main"}}, append([]string{"internal/libvirthook"}, verbRooms...)},
	{
		"qemu-netup",
		[][2]string{{"cmd/qemu-netup", "main"}, {"cmd/qemu-netup-full", "main"}},
		append([]string{"internal/access/gate", "internal/access/bridgehelper", "internal/vmm/launch"}, verbRooms...),
	},
}

var verbRooms = []string{"cmd", "tapmgr", "internal/guest", "internal/inventory", "internal/backend"}

// FilesToOpen returns the files that declare a function that the verb may call: first those in the
// verb's rooms, the packages that a reader must read to understand it, then those of the whole
// module. The first list stops at calls that leave the rooms: there a reader reads the called
// package's documentation.
func (m *Module) FilesToOpen(g *Graph, v Verb) (rooms, all []string, err error) {
	for _, e := range v.Entries {
		entry := m.Func(m.Path+"/"+e[0], e[1])
		if entry == nil {
			return nil, nil, fmt.Errorf("%s: package %s has no function %s (internal/arch/verbs.go)",
				v.Name, e[0], e[1])
		}
		inRoom := func(o types.Object) bool { return Under(m.short(o.Pkg().Path()), v.Rooms) }
		for _, file := range g.Files(entry, inRoom) {
			if Under(path.Dir(file), v.Rooms) {
				rooms = append(rooms, file)
			}
		}
		all = append(all, g.Files(entry, func(types.Object) bool { return true })...)
	}
	return unique(rooms), unique(all), nil
}

func unique(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}
