package output_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"vmnet/internal/cli/output"
)

func TestWriteYAML(t *testing.T) {
	type item struct {
		Name  string         `json:"name"`
		List  []any          `json:"list"`
		Inner map[string]any `json:"inner,omitempty"`
		More  []item         `json:"more,omitempty"`
	}
	v := []item{
		{Name: "P2", List: []any{"a", 1, true, nil, []string{"x", "y"}, []string{}}},
		{Name: "yes", List: nil, Inner: map[string]any{"k: v": "- x", "e": map[string]any{}}},
		{Name: "hostile \x1b[31m \u202e \U000e0001 \" \\ #", More: []item{{Name: "52:54:00:00:00:01"}, {Name: ""}}},
	}
	var out bytes.Buffer
	if err := output.WriteYAML(&out, v); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%q is in it", r)
		}
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	var read any
	err = yaml.Unmarshal(out.Bytes(), &read)
	if err == nil {
		text, err = json.Marshal(read)
	}
	if err == nil {
		err = json.Unmarshal(text, &got)
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s\n%s", err, diff, &out)
	}
	const begin = `- name: P2
  list:
    - a
    - 1
`
	if !bytes.HasPrefix(out.Bytes(), []byte(begin)) {
		t.Errorf("it begins with\n%s", &out)
	}
	out.Reset()
	if err := output.WriteYAML(&out, []int{}); err != nil || out.String() != "[]\n" {
		t.Errorf("%v, %q", err, &out)
	}
}
