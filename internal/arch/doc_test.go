package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strings"
	"testing"
)

// TestDocComments wants a doc comment at each exported symbol, which begins with its name, and
// "reports whether" at each documented function whose only result is a bool.
func TestDocComments(t *testing.T) {
	for _, s := range sources(t) {
		if !strings.HasSuffix(s.path, ".go") || strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, s.path, s.text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			for _, bad := range undocumented(d, f.Name.Name == "main") {
				t.Errorf("%s: %s", files.Position(bad.pos), bad.what)
			}
		}
	}
}

type badDoc struct {
	pos  token.Pos
	what string
}

func undocumented(d ast.Decl, program bool) (all []badDoc) {
	add := func(pos token.Pos, what string) { all = append(all, badDoc{pos, what}) }
	switch d := d.(type) {
	case *ast.FuncDecl:
		exported := d.Name.IsExported() && !program && receiverIsExported(d)
		switch text := oneLine(d.Doc.Text()); {
		case text == "" && exported:
			add(d.Pos(), d.Name.Name+" has no doc comment")
		case exported && !beginsWith(text, d.Name.Name):
			add(d.Pos(), "the doc comment does not begin with "+d.Name.Name)
		case text != "" && returnsBool(d.Type) && beginsWith(text, d.Name.Name) &&
			!strings.Contains(text, "eports whether"):
			add(d.Pos(), d.Name.Name+" returns a bool and does not say what it \"reports whether\"")
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				text := oneLine(d.Doc.Text() + spec.Doc.Text())
				if spec.Name.IsExported() && !program && !beginsWith(text, spec.Name.Name) {
					add(spec.Pos(), spec.Name.Name+" has no doc comment that begins with its name")
				}
			case *ast.ValueSpec:
				text := oneLine(spec.Doc.Text() + spec.Comment.Text())
				if text == "" { // that of the group
					text = oneLine(d.Doc.Text())
				}
				if spec.Names[0].IsExported() && !program && text == "" {
					add(spec.Pos(), spec.Names[0].Name+" has no comment")
				}
			}
		}
	}
	return all
}

func receiverIsExported(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch e := t.(type) {
		case *ast.StarExpr:
			t = e.X
		case *ast.IndexExpr:
			t = e.X
		case *ast.Ident:
			return e.IsExported()
		default:
			return false
		}
	}
}

func returnsBool(f *ast.FuncType) bool {
	if f.Results.NumFields() != 1 {
		return false
	}
	id, ok := f.Results.List[0].Type.(*ast.Ident)
	return ok && id.Name == "bool"
}

var article = regexp.MustCompile(`^(A|An|The) `)

func beginsWith(text, name string) bool {
	rest, ok := strings.CutPrefix(article.ReplaceAllString(text, ""), name)
	return ok && (rest == "" || !token.IsIdentifier("x"+rest[:1]))
}

func TestUndocumented(t *testing.T) {
	for text, want := range map[string]int{
		"func F() {}":                               1,
		"// F runs.\nfunc F() {}":                   0,
		"// Fs run.\nfunc F() {}":                   1,
		"// It runs.\nfunc F() {}":                  1,
		"// f runs.\nfunc f() bool { return true }": 1,
		"// f reports whether it runs.\nfunc f() bool { return true }": 0,
		"type T int":                                   1,
		"// A T is a number.\ntype T int":              0,
		"type t int\nfunc (t) F() {}":                  0,
		"// The states.\nconst (\n\tA = 1\n\tB = 2\n)": 0,
		"const A = 1":                                  1,
		"const A = 1 // one":                           0,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "a.go", "package a\n"+text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for _, d := range f.Decls {
			got += len(undocumented(d, false))
		}
		if got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}
