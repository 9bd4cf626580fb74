package nstest

import "testing"

func TestDemanded(t *testing.T) {
	for _, test := range []struct {
		list, feature string
		want          bool
	}{
		{"", "root", false},
		{"root,qemu", "qemu", true},
		{"root", "qemu", false},
		{"all", "qemu", true},
		{"all,-pidns", "qemu", true},
		{"all,-pidns", "pidns", false},
		{"-pidns,pidns", "pidns", true},
	} {
		if got := demanded(test.list, test.feature); got != test.want {
			t.Errorf("%q demands %s: %v", test.list, test.feature, got)
		}
	}
}
