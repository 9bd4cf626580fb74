package plaintap

import (
	"testing"

	"vmnet/internal/alias"
)

// FuzzParse: a parsed alias is the same after it is written and parsed again.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"vmnet plain uid=1000",
		"vmnet plain uid=1000 source=br0 port=vlan:10;isolated made=elsewhere",
		"vmnet plain source=br0",
		"vmnet plain uid=1000 source=a/b",
		"vmnet vm=P2 nic=net0 type=tap source=br0",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := Parse(text)
		if !ok {
			if got != (Tap{}) {
				t.Fatalf("%q is refused, with %+v", text, got)
			}
			return
		}
		again, ok := Parse(got.Alias())
		if len(got.Alias()) <= alias.Max && (!ok || again != got) {
			t.Fatalf("%q: read %+v, written %q, read %+v", text, got, got.Alias(), again)
		}
	})
}
