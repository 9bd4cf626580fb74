package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const sample = "# Title\n\ntext\n```console\n# one & sleep 1   # why\nsaid\n\n more\n# two; exit\n```\n" +
	"```\n# no session\n```\n## Users\n```console\n$ three\n```\n"

func TestParse(t *testing.T) {
	got, err := parse(sample)
	want := []session{
		{heading: "Title", prompt: "#", number: 5, patience: patience, lines: []line{
			{number: 5, command: "one & sleep 1   # why", want: []string{"said", "", " more"}},
			{number: 9, command: "two; exit"},
		}},
		{heading: "Users", prompt: "$", number: 16, patience: patience, lines: []line{{number: 16, command: "three"}}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(session{}, line{})); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for name, text := range map[string]string{
		"no end":           "```console\n# one\n",
		"two prompts":      "```console\n# one\n$ two\n```\n",
		"output before it": "```console\nsaid\n```\n",
	} {
		if got, err := parse(text); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestNormal(t *testing.T) {
	one := normal([]string{
		"[1] 4242", "a/net0: MAC 52:54:00:d3:38:52, vhost off, after 539µs to 2.749ms",
		"x  2       off    up  ", "", "k  3 s ago",
	})
	two := normal([]string{
		"a/net0: MAC 52:54:00:00:00:01, vhost on, after 1s to 12.7ms", "x  2  on  up",
		"k  0 s ago", "[1]+  Done   sleep",
	})
	if one != two || !strings.Contains(one, "a/net0: MAC MAC") {
		t.Errorf("these differ:\n%s\n%s", one, two)
	}
	if normal([]string{
		"P2 runs with pid 28", "monitor  /run/testvm/P2.qmp", "agent    /run/testvm/P2.agent",
		"up",
	}) != "up" {
		t.Error("a guest in the background is compared")
	}
	if normal([]string{"2 queues"}) == normal([]string{"3 queues"}) {
		t.Error("numbers do not count")
	}
}

// TestSession types sessions whose output matches the file, and some whose output does not.
func TestSession(t *testing.T) {
	t.Setenv("HOME", t.TempDir()) // without this machine's settings
	for _, test := range []struct{ name, lines, want string }{
		{"as printed", "# echo one; echo two\none\ntwo\n# x=3\n# exec bash --norc\n# echo x$x\nx\n# exit", ""},
		{"in the background", "# (sleep 0.3; echo late) & echo soon\nsoon\nlate\n# wait; exit", ""},
		{"before the prompt", "# PROMPT_COMMAND=\"$PROMPT_COMMAND; echo news\"; echo one\none\nnews\n# exit", ""},
		{"other output", "# echo one\nwon\n# exit", "line 2: echo one: it prints\none\n"},
		{"more output", "# echo one; echo two\none\n# exit", "it prints"},
		{"a failure", "# true\n# false\n# exit", "line 3: false: exit status 1"},
		{"no end", "# true", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			all, err := parse("```console\n" + test.lines + "\n```\n")
			if err != nil {
				t.Fatal(err)
			}
			all[0].patience = 2 * time.Second
			err = all[0].run(io.Discard)
			if test.want == "" && err != nil ||
				test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v", err)
			}
		})
	}
}
