package policy

import (
	"strings"
	"testing"
)

func TestMayShare(t *testing.T) {
	p := parse(t, `rules:
- {users: [1000], bridges: [br0]}
- users: [1000]
  share-memory: [1500, nosuchuser]
- {groups: [7], share-memory: [1600]}
- {users: ["*"], share-memory: [1700]}
- {users: [0], share-memory: [1800]}
`)
	for _, tt := range []struct {
		q    Sharing
		want string // what allows it, or a part of the error
	}{
		{Sharing{UID: 1000, Owner: 1500}, "policy.yaml:4"},
		{Sharing{UID: 2000, GIDs: []int{7}, Owner: 1600}, "policy.yaml:5"},
		{Sharing{UID: 2000, Owner: 1700}, "policy.yaml:6"},
		{Sharing{UID: 0, Owner: 1800}, "policy.yaml:7"},
		{Sharing{UID: 2000, Owner: 0}, "the privilege of root, whose switch it is"},
		{Sharing{UID: 2000, Owner: 2000}, "their user, who has both"},
		{
			Sharing{UID: 2000, Owner: 1500},
			"no rule for uid 2000 has share-memory: [1500] (add - {users: [2000]",
		},
		{Sharing{UID: 2000, Owner: 1600}, "no rule for uid 2000"},
		{Sharing{UID: 0, Owner: 1700}, "no rule for uid 0"}, // "*" is not root
		{Sharing{UID: 1000, Owner: -1}, "want no negative numbers"},
	} {
		v := p.MayShare(tt.q)
		if got := v.By; v.Allowed && got != tt.want || !v.Allowed && !strings.Contains(v.Err().Error(), tt.want) {
			t.Errorf("%+v: %+v, want %q", tt.q, v, tt.want)
		}
	}
	v := (*Policy)(nil).MayShare(Sharing{UID: 1000, Owner: 1500})
	if v.Allowed || !strings.Contains(v.Err().Error(), "it does not exist") ||
		!strings.Contains(v.Example, "share-memory: [1500]") {
		t.Errorf("without a file: %+v", v)
	}
	if v := p.Decide(Request{UID: 3000, Bridge: "br0"}); v.Allowed { // share-memory allows no NIC
		t.Errorf("%+v", v)
	}
	got := strings.Join(p.Warnings(), "\n")
	if !strings.Contains(got, `policy.yaml:4: there is no user "nosuchuser"`) {
		t.Errorf("warnings %q", got)
	}
	_, err := Parse("policy.yaml", []byte(`rules: [{users: [1], share-memory: ["*"]}]`))
	if err == nil {
		t.Error("everybody's switches may have the memory")
	}
}
