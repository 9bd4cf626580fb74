package ovs

import "testing"

func TestOwnerText(t *testing.T) {
	o := Owner{VM: "my guest=%", NIC: "net0", Place: Place{Machine: "m", Boot: "b", Netns: 4026531840}, Link: 7}
	if again := parseOwner(o.String()); again == nil || *again != o {
		t.Errorf("%q is read as %+v", o, again)
	}
	for _, text := range []string{
		"", "yes", "vm=P2", "vm=P2 nic=net0 machine=m", "vm=P2 nic=net0 machine=m link=x",
		"vm=%zz nic=net0 machine=m link=1", "vm=P2 nic=net0 machine=m netns=-1 link=1",
		"vm=P2 nic=net0 machine=m link=1 netns=99999999999999999999",
	} {
		if o := parseOwner(text); o != nil {
			t.Errorf("%q is read as %+v", text, o)
		}
	}
}

func TestIsStale(t *testing.T) {
	here := Place{Machine: "m", Boot: "b", Netns: 1}
	links := map[int]string{7: "P2-net0", 8: "other"}
	for name, test := range map[string]struct {
		owner *Owner
		want  bool
	}{
		"somebody else's":        {nil, false},
		"its tap is there":       {&Owner{Place: here, Link: 7}, false},
		"it has gone":            {&Owner{Place: here, Link: 9}, true},
		"its index is another's": {&Owner{Place: here, Link: 8}, true},
		"of another machine":     {&Owner{Place: Place{Machine: "x", Boot: "b", Netns: 1}, Link: 9}, false},
		"of a former boot":       {&Owner{Place: Place{Machine: "m", Boot: "x", Netns: 1}, Link: 7}, true},
		"of another netns":       {&Owner{Place: Place{Machine: "m", Boot: "b", Netns: 2}, Link: 9}, false},
	} {
		p := Port{Name: "P2-net0", Owner: test.owner}
		if stale := p.IsStale(here, links); stale != test.want {
			t.Errorf("%s: stale is %v", name, stale)
		}
	}
}
