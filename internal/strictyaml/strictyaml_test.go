package strictyaml

import (
	"testing"

	"github.com/goccy/go-yaml/ast"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// parse reads a file that may have the keys name, on and list.
func parse(text string) (name string, on bool, list []string, err error) {
	d := New("f", []byte(text))
	root, err := d.Root()
	if err != nil || root == nil {
		return name, on, list, err
	}
	err = d.Mapping(
		root, "the file",
		Key("name", func(n ast.Node) (err error) { name, err = d.Text(n, "name"); return err }),
		Key("on", func(n ast.Node) (err error) { on, err = d.Flag(n, "on"); return err }),
		Key("list", func(n ast.Node) error {
			return d.List(n, "list", func(n ast.Node) error {
				item, err := d.Text(n, "item")
				list = append(list, item)
				return err
			})
		}),
	)
	return name, on, list, err
}

func TestDocument(t *testing.T) {
	name, on, list, err := parse("name: 10\non: true\nlist: [a, b]\n")
	if err != nil || name != "10" || !on || len(list) != 2 {
		t.Errorf("%q, %v, %q, %v", name, on, list, err)
	}
	for text, want := range map[string]string{
		"":                     "",
		"# nothing\n":          "",
		"name: x\nnmae: y\n":   "f:2:1: the file has no key \"nmae\" (want name, on, list), in `nmae: y`",
		"name: x\n'name': y\n": "f:2:1: mapping key \"name\" already defined at [1:1], in `'name': y`",
		"on: 1\n":              "f:1:5: on is neither true nor false, in `on: 1`",
		"list: x\n":            "f:1:7: list is not a list (write [a, b]), in `list: x`",
		"name: {a: b}\n":       "f:1:7: name is not a plain value, in `name: {a: b}`",
		"name: &a x\non: *a\n": "f:1:7: name is not a plain value, in `name: &a x`",
		"name: x\n---\non: true\n": "f:3:1: a second document in the file (remove it), " +
			"in `on: true`",
	} {
		_, _, _, err := parse(text)
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}
