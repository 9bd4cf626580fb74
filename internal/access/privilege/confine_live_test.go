package privilege

import (
	"encoding/json"
	"strings"
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// One thread has the capability; the other threads of a setuid program have none.
func TestLiveConfine(t *testing.T) {
	l := newLab(t)
	const admin = 1 << cap.NET_ADMIN
	kept := task{uids: same(nobody), gids: same(nobody), prm: admin, eff: admin}
	none := task{uids: same(nobody), gids: same(nobody)}
	for name, test := range map[string]struct {
		start
		others task
	}{
		"setuid root":       {start{path: l.setuid}, none},
		"setuid and setgid": {start{path: l.setids}, none},
		"file +ep":          {start{path: l.ep}, kept},
		"ambient, two":      {start{path: l.plain, ambient: []uintptr{12, 13}}, kept},
	} {
		t.Run(name, func(t *testing.T) {
			o := ok(t, test.start, "threads=8", "confine=net_admin", "report", "read="+l.secret, "tun="+l.tun, "drop",
				"report", "regain", "tun="+l.tun)
			var r report
			must(t, json.Unmarshal([]byte(o.lines["report"][0]), &r))
			if r.Dumpable != 0 || r.Core != 0 || r.NoNewPrivs != 1 || len(r.Tasks) < 9 {
				t.Errorf("%+v", r)
			}
			count := map[task]int{}
			for _, s := range r.Tasks {
				one, err := parseTask(s)
				must(t, err)
				count[one]++
			}
			if test.others != kept && count[kept] != 1 || count[kept]+count[none] != len(r.Tasks) ||
				test.others == kept && count[none] > 0 {
				t.Errorf("threads: %+v", count)
			}
			if o.lines["tun"][0] != "ok" || o.lines["tun"][1] == "ok" || o.lines["read"][0] == "ok" ||
				strings.Contains(strings.Join(o.lines["regain"], ""), "ok") {
				t.Errorf("%s", o.stdout)
			}
			after := report{}
			must(t, json.Unmarshal([]byte(o.lines["report"][1]), &after))
			for _, s := range after.Tasks {
				if one, err := parseTask(s); err != nil || one != none {
					t.Errorf("dropped: %+v, %v", one, err)
				}
			}
		})
	}
}

func TestLiveConfineRoot(t *testing.T) {
	l := newLab(t)
	o := ok(t, start{path: l.setuid, root: true}, "confine=net_admin", "read="+l.secret, "tun="+l.tun, "report")
	var r report
	must(t, json.Unmarshal([]byte(o.lines["report"][0]), &r))
	if o.lines["read"][0] != "ok" || o.lines["tun"][0] != "ok" || !strings.Contains(r.Tasks[0], "NoNewPrivs:\t1\n") {
		t.Errorf("%s", o.stdout)
	}
}

func TestLiveConfineRefusal(t *testing.T) {
	l := newLab(t)
	o := ok(t, start{path: l.plain}, "confine=net_admin", "report")
	_, got := o.reports(t)
	if want := (task{uids: same(nobody), gids: same(nobody)}); got[0] != want ||
		!strings.Contains(o.lines["confine"][0], "CAP_NET_ADMIN is missing") {
		t.Errorf("%s", o.stdout)
	}
}
