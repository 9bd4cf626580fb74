package alias

import "testing"

func TestOwner(t *testing.T) {
	for _, c := range []struct {
		alias string
		uid   int
		ok    bool
	}{
		{"vmnet plain uid=1000 source=br0", 1000, true},
		{"vmnet vm=P2 nic=net0 type=tap source=br0 queues=1 uid=65534", 65534, true},
		{"vmnet vm=P2%20uid=7 nic=net0 type=tap", 0, false},
		{"vmnet vm=P2%20uid=7 uid=8", 8, true},
		{"vmnet plain uid=x", 0, false},
		{"vmnet plain uid=", 0, false},
		{"vmnet", 0, false},
		{"other plain uid=1000", 0, false},
		{"", 0, false},
	} {
		if uid, ok := Owner(c.alias); ok != c.ok || ok && uid != c.uid {
			t.Errorf("%q: %d, %v, want %d, %v", c.alias, uid, ok, c.uid, c.ok)
		}
	}
}

// FuzzEscape: parsing an alias returns the value that was escaped, regardless of the fields around
// it.
func FuzzEscape(f *testing.F) {
	for _, s := range []string{"br0", "a b", "100%", "\x00\x7f\n", "", "uid=0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, value, err := Field("key=" + Escape(s))
		if err != nil || key != "key" || value != s {
			t.Errorf("%q: %q=%q, %v", s, key, value, err)
		}
		if uid, ok := Owner(Prefix + "vm=" + Escape(s) + " uid=42"); !ok || uid != 42 {
			t.Errorf("%q: uid %d, %v", s, uid, ok)
		}
	})
}
