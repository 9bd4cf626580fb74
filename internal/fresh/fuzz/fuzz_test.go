package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestFind finds those of this module, and of no other.
func TestFind(t *testing.T) {
	targets, err := find("../../..")
	if err != nil || len(targets) < 60 {
		t.Fatalf("%d fuzz tests, %v", len(targets), err)
	}
	for _, want := range []target{{dir: "qmp"}, {dir: "bridge/vswitch/pcapng"}} {
		if !slices.ContainsFunc(targets, func(t target) bool { return t.dir == want.dir }) {
			t.Errorf("nothing of %s", want.dir)
		}
	}
}

// TestTurns: each has its turn before another has a second one.
func TestTurns(t *testing.T) {
	d := turns(filepath.Join(t.TempDir(), "turns"))
	all := []target{{"a", "FuzzA"}, {"a", "FuzzB"}, {"b/c", "FuzzA"}, {"b/c", "FuzzD"}, {"e", "FuzzF"}}
	if got := d.next(all, 0); len(got) != len(all) {
		t.Errorf("of all: %v", got)
	}
	now := time.Unix(1700000000, 0)
	seen := map[target]int{}
	for round := range 10 {
		for _, one := range d.next(all, 2) {
			seen[one]++
			if err := d.had(one, now.Add(time.Duration(round)*time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		if round == 2 && len(seen) != len(all) {
			t.Errorf("after three rounds of two: %v", seen)
		}
	}
	for one, n := range seen {
		if n < 3 {
			t.Errorf("%v has had %d turns of 20, of five", one, n)
		}
	}
}

// TestModule runs a module with a fuzz test that fails and one that does not.
func TestModule(t *testing.T) {
	dir := t.TempDir()
	const text = `package m

import "testing"

func FuzzGood(f *testing.F) { f.Fuzz(func(*testing.T, byte) {}) }

func FuzzBad(f *testing.F) {
	f.Fuzz(func(t *testing.T, b byte) {
		if b > 3 {
			t.Error("more than three")
		}
	})
}
`
	t.Setenv("GOFLAGS", "-trimpath")
	const module = "vmnet-fuzz-of-a-test"
	err := errors.Join(os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module "+module+"\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "m_test.go"), []byte(text), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	turns, err := turnsOf(t.Context(), dir)
	if err != nil || filepath.Base(filepath.Dir(string(turns))) != module {
		t.Fatalf("turns are in %s, %v", turns, err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(string(turns))) })
	var out bytes.Buffer
	r := run{each: 2 * time.Second, out: &out}
	err = r.module(t.Context(), dir, 0)
	if err == nil || !strings.Contains(err.Error(), "FuzzBad") || strings.Contains(err.Error(), "FuzzGood") {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{
		"2 of 2 fuzz tests", "ok   . FuzzGood: elapsed: ", "FAIL . FuzzBad\n", "\ngo test fuzz v1\nbyte(",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}
