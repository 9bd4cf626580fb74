package arch

import "slices"

// Knot returns the largest set of a package's files that all depend on each other, directly or
// through others: they can only be understood together. A package whose files have no such set has
// a knot of one file.
func (m *Module) Knot(p *Package) []string {
	needs := map[string][]string{}
	for file, syntax := range p.Files {
		start, end := syntax.FileStart, syntax.FileEnd
		for id, o := range p.Info.Uses {
			if id.Pos() < start || id.Pos() >= end || o.Pkg() != p.Types || !o.Pos().IsValid() {
				continue
			}
			if other := m.Fset.Position(o.Pos()).Filename; other != file {
				needs[file] = append(needs[file], other)
			}
		}
		needs[file] = unique(needs[file])
	}
	reach := map[string]map[string]bool{}
	for file := range p.Files {
		reach[file] = map[string]bool{}
		reachAll(needs, file, reach[file])
	}
	var largest []string
	for file := range p.Files {
		knot := []string{file}
		for other := range p.Files {
			if other != file && reach[file][other] && reach[other][file] {
				knot = append(knot, other)
			}
		}
		if slices.Sort(knot); len(knot) > len(largest) {
			largest = knot
		}
	}
	return largest
}

func reachAll(needs map[string][]string, from string, seen map[string]bool) {
	for _, next := range needs[from] {
		if !seen[next] {
			seen[next] = true
			reachAll(needs, next, seen)
		}
	}
}
