package console

import (
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestSay(t *testing.T) {
	for text, want := range map[string]string{
		"":                        "p: \n",
		"no":                      "p: no\n",
		"no\nundo: no either\n\n": "p: no\n  undo: no either\n",
		"\x1b[2J\r\nb\x00\u202ec": "p: \ufffd[2J\ufffd\n  b\ufffd\ufffdc\n",
	} {
		var b strings.Builder
		if Say(&b, "p", text); b.String() != want {
			t.Errorf("%q: %q, want %q", text, b.String(), want)
		}
	}
}
