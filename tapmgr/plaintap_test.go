package tapmgr

import "testing"

// FuzzParsePlain: what is read says the same when it is written and read again.
func FuzzParsePlain(f *testing.F) {
	for _, alias := range []string{
		"vmnet plain uid=1000",
		"vmnet plain uid=1000 source=br0 port=vlan:10;isolated made=elsewhere",
		"vmnet plain source=br0",
		"vmnet plain uid=1000 source=a/b",
		"vmnet vm=P2 nic=net0 type=tap source=br0",
	} {
		f.Add(alias)
	}
	f.Fuzz(func(t *testing.T, alias string) {
		got, ok := parsePlain(alias)
		if !ok {
			if got != (plainTap{}) {
				t.Fatalf("%q is refused, with %+v", alias, got)
			}
			return
		}
		again, ok := parsePlain(got.alias())
		if len(got.alias()) <= maxAlias && (!ok || again != got) {
			t.Fatalf("%q: read %+v, written %q, read %+v", alias, got, got.alias(), again)
		}
	})
}
