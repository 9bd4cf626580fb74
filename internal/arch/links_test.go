package arch

import "testing"

func TestForbiddenLinks(t *testing.T) {
	linked := map[string][]string{}
	for _, f := range ForbiddenLinks {
		if linked[f.Program] == nil {
			var err error
			if linked[f.Program], err = Linked("../..", f.Program); err != nil {
				t.Fatal(err)
			}
		}
		switch in := f.In(linked[f.Program]); {
		case in && !f.NotYet:
			t.Errorf("%s links %s: %s", f.Program, f.Package, f.Why)
		case !in && f.NotYet:
			t.Errorf("%s does not link %s any more: remove its NotYet in links.go", f.Program, f.Package)
		}
	}
}

func TestForbiddenLinkIn(t *testing.T) {
	for pkg, want := range map[string]bool{"m/a": true, "m/b": false, "m/a/c": true, "m/ab": false} {
		if got := (ForbiddenLink{Package: "m/a/..."}).In([]string{"x", pkg}); got != want {
			t.Errorf("m/a/... in %s: %v", pkg, got)
		}
	}
	if (ForbiddenLink{Package: "m/a"}).In([]string{"m/a/c"}) {
		t.Error("m/a is in m/a/c")
	}
}
