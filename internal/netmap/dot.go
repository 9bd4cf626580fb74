package netmap

import (
	"fmt"
	"strings"

	"vmnet/internal/cli/console"
)

// DOT writes the map for Graphviz's dot(1). A guest with several NICs is one node.
func (m *Map) DOT() string {
	var b strings.Builder
	b.WriteString("graph vmnet {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n")
	guests := map[string]bool{}
	for i, p := range m.Places {
		fmt.Fprintf(&b, "  p%d [label=%s, style=\"filled%s\", fillcolor=\"#e8f0fe\"%s];\n", i, quoted(p.Title()),
			dashes(p.Broken), colours(p.Foreign, p.Broken))
		shown, hidden := p.Folded()
		for j, e := range shown {
			node := fmt.Sprintf("p%de%d", i, j)
			label := e.Name
			if e.Kind == "guest" && e.Guest != "" {
				node, label = quoted("guest "+e.Guest), e.Guest
			} else if e.Kind != "guest" {
				label = e.Kind + " " + e.Name
			}
			if !guests[node] {
				guests[node] = true
				fmt.Fprintf(&b, "  %s [label=%s%s];\n", node, quoted(label), colours(e.Foreign, ""))
			}
			text := strings.TrimSpace(e.Interface + " " + e.Settings)
			if e.Broken != "" {
				text += ": " + e.Broken
			}
			fmt.Fprintf(&b, "  p%d -- %s [label=%s%s];\n", i, node, quoted(text), colours(e.Foreign, e.Broken))
		}
		if hidden > 0 {
			fmt.Fprintf(&b, "  p%[1]drest [label=%[2]s, shape=plaintext];\n  p%[1]d -- p%[1]drest;\n", i,
				quoted(hiddenText(hidden)))
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// quoted returns a double-quoted string of DOT, in which a backslash would begin an escape.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(console.Clean(s)) + `"`
}

func dashes(broken string) string {
	if broken != "" {
		return ",dashed"
	}
	return ""
}

func colours(foreign bool, broken string) string {
	switch {
	case broken != "":
		return `, color="#c5221f", fontcolor="#c5221f"`
	case foreign:
		return `, color="#80868b", fontcolor="#80868b"`
	}
	return ""
}
