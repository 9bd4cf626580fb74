package lab_test

import (
	"encoding/json"
	"fmt"
	"go/format"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// result is the outcome of a test with its subtests.
type result struct {
	name, output string
	// bad says why it is not a success; a skip is not a success.
	bad string
}

// event is one of those that "go doc test2json" describes.
type event struct{ Action, Test, Output string }

// readEvents calls done for each test that has ended, and returns the output that belongs to none
// of them: that of a crashed program.
func readEvents(events io.Reader, done func(result)) (rest string, err error) {
	running := map[string]*result{}
	for d := json.NewDecoder(events); ; {
		var e event
		if err = d.Decode(&e); err != nil {
			break
		}
		name, sub, _ := strings.Cut(e.Test, "/")
		r := running[name]
		if r == nil {
			r = &result{name: name}
			running[name] = r
		}
		switch {
		case e.Action == "output":
			r.output += e.Output
		case name == "":
		case e.Action == "skip", e.Action == "fail":
			r.bad = strings.TrimSpace(strings.Join([]string{r.bad, e.Action, sub}, " "))
		}
		if name != "" && sub == "" && slices.Contains([]string{"pass", "fail", "skip"}, e.Action) {
			delete(running, name)
			done(*r)
		}
	}
	if err != io.EOF {
		return "", fmt.Errorf("read test events: %w", err)
	}
	for _, r := range running {
		rest += r.output
	}
	return strings.TrimPrefix(strings.TrimSpace(rest), "PASS"), nil
}

func TestReadEvents(t *testing.T) {
	for name, c := range map[string]struct {
		events string
		want   []result
		rest   string
	}{
		"pass": {
			`{"Action":"run","Test":"TestA"}{"Action":"output","Test":"TestA","Output":"a\n"}{"Action":"pass","Test":"TestA"}{"Action":"output","Output":"PASS\n"}{"Action":"pass"}`,
			[]result{{"TestA", "a\n", ""}},
			"",
		},
		"skip": {`{"Action":"skip","Test":"TestA"}`, []result{{"TestA", "", "skip"}}, ""},
		"skip of a part": {
			`{"Action":"skip","Test":"TestA/b"}{"Action":"pass","Test":"TestA"}`,
			[]result{{"TestA", "", "skip b"}},
			"",
		},
		"fail of a part": {
			`{"Action":"fail","Test":"TestA/b"}{"Action":"fail","Test":"TestA"}`,
			[]result{{"TestA", "", "fail b fail"}},
			"",
		},
		"output of a part": {
			`{"Action":"output","Test":"TestA/b","Output":"b"}{"Action":"pass","Test":"TestA"}`,
			[]result{{"TestA", "b", ""}},
			"",
		},
		"crash": {
			`{"Action":"run","Test":"TestA"}{"Action":"output","Test":"TestA","Output":"panic: oh"}`,
			nil, "panic: oh",
		},
		"nothing": {
			`{"Action":"output","Output":"testing: warning: no tests to run\n"}`,
			nil, "testing: warning: no tests to run",
		},
	} {
		var got []result
		rest, err := readEvents(strings.NewReader(c.events), func(r result) { got = append(got, r) })
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(result{}), cmpopts.EquateEmpty()); diff != "" ||
			err != nil || rest != c.rest {
			t.Errorf("%s: %v, rest %q (-want +got):\n%s", name, err, rest, diff)
		}
	}
	if _, err := readEvents(strings.NewReader("{"), nil); err == nil {
		t.Error("half an event is no error")
	}
}

func TestFindsLabTests(t *testing.T) {
	code, err := format.Source([]byte(`package p
		func TestLab(t *testing.T) {}
		func TestLabA(t *testing.T) {}
		func TestLab_b(t *testing.T) {}
		func TestLabel(t *testing.T) {}
		func TestLiveLabC(t *testing.T) {}
		func ` + runner + `(t *testing.T) {}
		func (x y) TestLabMethod(t *testing.T) {}
		// func TestLabComment(t *testing.T) {}`))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "p_test.go")
	if err := os.WriteFile(file, code, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := labTests(file)
	if diff := cmp.Diff([]string{"TestLab", "TestLabA", "TestLab_b"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
