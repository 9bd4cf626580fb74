package nft

import (
	"strings"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const listing = `{"nftables": [{"metainfo": {"version": "1.0.6"}},
{"table": {"family": "ip", "name": "filter", "handle": 1}},
{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
{"set": {"family": "ip", "table": "filter", "name": "s", "handle": 4}},
{"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 2, "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]}},
{"rule": {"family": "ip", "table": "filter", "chain": "nowhere", "handle": 3, "expr": []}}]}`

func TestParse(t *testing.T) {
	r, err := Parse([]byte(listing))
	if err != nil {
		t.Fatal(err)
	}
	id := TableID{"ip", "filter"}
	c := r.Chain(id, "FORWARD")
	if c == nil || c.Hook != "forward" || c.Policy != "drop" || len(c.Rules) != 1 || len(c.Rules[0]) != 2 {
		t.Errorf("%+v", c)
	}
	if got := r.Table(id); len(got) != 5 {
		t.Errorf("%d objects: %v", len(got), got)
	}
	if r.Chain(id, "x") != nil || r.Table(TableID{"ip", "x"}) != nil {
		t.Error("what there is not was found")
	}
	for _, text := range []string{"", "[]", `{"nftables": [{"chain": 1}]}`, `{"nftables": [{"rule": {"expr": {}}}]}`} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%q was parsed", text)
		}
	}
}

// FuzzParse: whatever a program prints is parsed, or refused.
func FuzzParse(f *testing.F) {
	f.Add([]byte(listing))
	f.Add([]byte(`{"nftables": [{"rule": {"expr": [{"jump": {"target": "a"}}]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			return
		}
		for _, c := range r.Chains {
			if r.Chain(c.Table, c.Name) == nil || r.Table(c.Table) == nil {
				t.Errorf("%+v is not found", c)
			}
		}
	})
}

func TestLiveErrors(t *testing.T) {
	_, err := tool.Find("nft", "nftables")
	nstest.Require(t, "nft", err == nil, "apt install nftables")
	ns := nstest.New(t)
	if err := Apply(t.Context(), ns, "nonsense\n"); err == nil || !strings.Contains(err.Error(), "syntax error") {
		t.Error(err)
	}
	if err := Apply(t.Context(), ns, "add table inet x\nadd rule inet x y drop\n"); err == nil {
		t.Error("a rule without a chain")
	}
	r, err := List(t.Context(), ns)
	if err != nil || r.Table(TableID{"inet", "x"}) != nil {
		t.Errorf("half of the commands were run: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := tool.Find("no-such-program", "pkg"); err == nil ||
		err.Error() != "no-such-program is not installed (apt install pkg)" {
		t.Error(err)
	}
}
