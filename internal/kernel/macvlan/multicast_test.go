package macvlan

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseGroups(t *testing.T) {
	const text = `2    eth0            1     0     01005e000001
7    P2-net0         2     1     01005e0000fb
7    P2-net0         1     0     333300000001
77   P2-net0         1     1     333300000002
7    P2-net0         1     1     3333
7    P2-net0         1     1
7    P2-net0         1     1     3333ff000001
`
	want := []net.HardwareAddr{{1, 0, 0x5e, 0, 0, 0xfb}, {0x33, 0x33, 0xff, 0, 0, 1}}
	if diff := cmp.Diff(want, parseGroups(text, 7)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzParseGroups(f *testing.F) {
	f.Add("7 a 1 1 333300000001\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, g := range parseGroups(text, 7) {
			if len(g) != 6 {
				t.Error(g)
			}
		}
	})
}
