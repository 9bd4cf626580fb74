package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const maxErrorLength = 160 // characters of an error's format

// capitalised are the names that an error may begin with.
var capitalised = regexp.MustCompile(
	`^([A-Z][A-Z0-9_-]|[A-Z][a-z]*[A-Z_]|[A-Z]\.|(Ethernet|Linux|Debian|Go|Open|Wi-Fi|Unix)\b)`)

// TestErrorsAreShort measures the texts of errors: one sentence that names object, cause and cure
// and can be wrapped by another.
func TestErrorsAreShort(t *testing.T) {
	for _, s := range sources(t) {
		if !strings.HasSuffix(s.path, ".go") {
			continue
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, s.path, s.text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && makesError(call.Fun) {
				for _, arg := range call.Args {
					if fault := faultOfError(literal(arg)); fault != "" {
						t.Errorf("%s: %s: %q", files.Position(arg.Pos()), fault, literal(arg))
					}
				}
			}
			return true
		})
	}
}

// makesError reports whether a function makes an error of its arguments: errors.New, fmt.Errorf and
// functions of ours whose names end so.
func makesError(fun ast.Expr) bool {
	switch f := fun.(type) {
	case *ast.SelectorExpr:
		if pkg, ok := f.X.(*ast.Ident); ok && pkg.Name == "errors" {
			return f.Sel.Name == "New"
		}
		if id, ok := f.X.(*ast.Ident); ok && (id.Name == "t" || id.Name == "b" || id.Name == "tb") {
			return false // of package testing
		}
		return f.Sel.Name == "Errorf" || strings.HasSuffix(f.Sel.Name, "errorf")
	case *ast.Ident:
		return strings.HasSuffix(f.Name, "rrorf") || strings.HasSuffix(f.Name, "Error")
	}
	return false
}

// literal returns a string constant that is written as one or more literals; "" for anything else.
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, _ := strconv.Unquote(e.Value)
			return text
		}
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	case *ast.ParenExpr:
		return literal(e.X)
	}
	return ""
}

func faultOfError(text string) string {
	switch {
	case len([]rune(text)) > maxErrorLength:
		return strconv.Itoa(len([]rune(text))) + " characters"
	case strings.HasSuffix(text, ".") && !strings.HasSuffix(text, "..."):
		return "ends in a period"
	case text != "" && text[0] >= 'A' && text[0] <= 'Z' && !capitalised.MatchString(text):
		return "begins with a capital"
	}
	return ""
}

func TestFaultOfError(t *testing.T) {
	for text, bad := range map[string]bool{
		"bridge %s: %w (create it first)": false,
		"QEMU has ended":                  false,
		"Bridge":                          true,
		"no bridge.":                      true,
		"and so on...":                    false,
		strings.Repeat("ä", 160):          false,
		strings.Repeat("a", 161):          true,
	} {
		if got := faultOfError(text); (got != "") != bad {
			t.Errorf("%q: %q", text, got)
		}
	}
}
