package output

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestWriteJSON checks that the output cannot control a terminal, and has the same value when read
// back.
func TestWriteJSON(t *testing.T) {
	for _, text := range []string{
		"plain", "Gr\u00f6\u00dfe \U0001f600", "a\x1b[2J\r\n", "\u0080\u009b31m\u009d", "\x7f",
		"admin\u202egpj.\u2066x\u2069\u200f\u061c",
		"\ufeff\u2028\u2029\u00ad\u200b", "\U000e0041\U000f0000", "no-break\u00a0space", "<&>",
	} {
		var b strings.Builder
		if err := WriteJSON(&b, map[string]string{text: text}); err != nil {
			t.Fatal(err)
		}
		for _, r := range b.String() {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Errorf("%q: %U in %q", text, r, b.String())
			}
		}
		var back map[string]string
		if err := json.Unmarshal([]byte(b.String()), &back); err != nil || len(back) != 1 || back[text] != text {
			t.Errorf("%q: read back as %q, %v", text, back, err)
		}
	}
	var b strings.Builder
	if err := WriteJSON(&b, "a\x80\xff\n"); err != nil || b.String() != `"a\ufffd\ufffd\n"`+"\n" {
		t.Errorf("invalid UTF-8: %q, %v", b.String(), err)
	}
	if err := WriteJSON(&b, func() {}); err == nil {
		t.Error("a function was written")
	}
}
