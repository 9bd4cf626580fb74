package why

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// cataloguePath is a table of faults: name, what why says of it, and the cure. Words in capitals
// stand for names and numbers.
const cataloguePath = "../../docs/why.md"

// fewestFaults is how many the catalogue has at least.
const fewestFaults = 40

type row struct{ name, says, cure string }

// catalogue reads the table.
func catalogue(tb testing.TB) (rows []row) {
	tb.Helper()
	text, err := os.ReadFile(cataloguePath)
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || cells[0] != "" || strings.HasPrefix(cells[1], " ---") {
			continue
		}
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		if cells[1] != "Fault" {
			rows = append(rows, row{cells[1], cells[2], cells[3]})
		}
	}
	return rows
}

// capitals are the words that stand for others.
var capitals = regexp.MustCompile(`\b[A-Z]{2,}(-[A-Z]+)*[0-9]?\b`)

// notNames are words in capitals of which a text consists.
var notNames = []string{
	"MAC", "MTU", "IP", "STP", "FDB", "VMM", "VLAN", "VLANS", "VXLAN", "VNI", "PVID", "DHCP", "NAT", "NIC", "OVN",
	"DOCKER-USER", "QEMU", "ARP", "IPv6",
}

// pattern matches what a cell of the table says.
func pattern(cell string) *regexp.Regexp {
	var b strings.Builder
	at := 0
	for _, word := range capitals.FindAllStringIndex(cell, -1) {
		if slices.Contains(notNames, cell[word[0]:word[1]]) {
			continue
		}
		b.WriteString(regexp.QuoteMeta(cell[at:word[0]]) + `\S.*?`)
		at = word[1]
	}
	return regexp.MustCompile("^" + b.String() + regexp.QuoteMeta(cell[at:]) + "$")
}

// documented demands that the table says what the walk does.
func (s *site) documented(name string, found *Step) {
	s.Helper()
	says := found.Where + ": " + found.Why
	for _, r := range catalogue(s) {
		if r.name != name {
			continue
		}
		if !pattern(r.says).MatchString(says) || !pattern(r.cure).MatchString(found.Cure) {
			s.Errorf("%s: the walk says\n| %s | `%s`\nand %s\n| %s | `%s`", name, says, found.Cure, cataloguePath,
				r.says, r.cure)
		}
		return
	}
	s.Errorf("%s has no row\n| %s | %s | `%s` |", cataloguePath, name, says, found.Cure)
}

// TestCatalogue: the table has just the faults that tests make for real, each once.
func TestCatalogue(t *testing.T) {
	var listed []string
	for _, r := range catalogue(t) {
		listed = append(listed, r.name)
	}
	made := slices.Compact(slices.Sorted(slices.Values(madeFaults(t)))) // some in several places
	t.Logf("%d faults", len(made))
	if len(made) < fewestFaults {
		t.Errorf("only %d faults are made", len(made))
	}
	for _, list := range []struct {
		what        string
		names, than []string
	}{{"is listed and not made", listed, made}, {"is made and not listed", made, listed}} {
		slices.Sort(list.names)
		for i, name := range list.names {
			if i > 0 && list.names[i-1] == name {
				t.Errorf("%q is there twice", name)
			}
			if !slices.Contains(list.than, name) {
				t.Errorf("%q %s", name, list.what)
			}
		}
	}
}

// madeFaults are the names of all faults that the live and lab tests make: the field name of each
// literal of type broken.
func madeFaults(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			literal, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			all := []ast.Expr{literal}
			if list, ok := literal.Type.(*ast.ArrayType); ok && isBroken(list.Elt) {
				all = literal.Elts
			} else if !isBroken(literal.Type) {
				return true
			}
			for _, e := range all {
				if one, ok := e.(*ast.CompositeLit); ok {
					names = append(names, nameOf(one))
				}
			}
			return true
		})
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

func isBroken(e ast.Expr) bool {
	name, ok := e.(*ast.Ident)
	return ok && name.Name == "broken"
}

func nameOf(literal *ast.CompositeLit) string {
	for _, e := range literal.Elts {
		pair, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		value, isLiteral := pair.Value.(*ast.BasicLit)
		if key, ok := pair.Key.(*ast.Ident); ok && key.Name == "name" && isLiteral {
			name, _ := strconv.Unquote(value.Value)
			return name
		}
	}
	return ""
}
