package privilege

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

func TestLiveGiveUp(t *testing.T) {
	l := newLab(t)
	for name, test := range map[string]struct {
		start
		to   string
		want task
	}{
		"root stays root": {start: start{path: l.plain, root: true}, want: rights(t)},
		"root becomes another": {
			start: start{path: l.plain, root: true}, to: "12345",
			want: task{uids: same(12345), gids: same(12345), groups: "4 7"},
		},
		"a user with a capability": {
			start: start{
				path: l.plain, groups: []uint32{9, 8},
				ambient: []uintptr{uintptr(cap.NET_ADMIN)},
			},
			want: task{uids: same(nobody), gids: same(nobody), groups: "8 9"},
		},
		"a user without any": {start: start{path: l.plain}, want: task{uids: same(nobody), gids: same(nobody)}},
	} {
		t.Run(name, func(t *testing.T) {
			o := ok(t, test.start, "threads=8", "giveup="+test.to, "report", "tun="+l.tun, "regain")
			if got := o.lines["giveup"][0]; got != "ok" {
				t.Fatal(got)
			}
			all, got := o.reports(t)
			test.want.inh, test.want.prm, test.want.eff, test.want.amb = 0, 0, 0, 0
			if diff := cmp.Diff([]task{test.want}, got, eachField); diff != "" {
				t.Errorf("- want, + got:\n%s", diff)
			}
			if all[0].NoNewPrivs != 1 || len(all[0].Tasks) < 9 {
				t.Errorf("%+v", all[0])
			}
			if o.lines["tun"][0] != "operation not permitted" || slices.Contains(o.lines["regain"], "ok") {
				t.Errorf("a way back: %s, %s", o.lines["tun"], o.lines["regain"])
			}
		})
	}
	o := ok(t, start{path: l.plain}, "giveup=12345")
	if got := o.lines["giveup"][0]; !strings.Contains(got,
		"become user 12345: set its groups: operation not permitted (needs CAP_SETGID)") {
		t.Error(got)
	}
}
