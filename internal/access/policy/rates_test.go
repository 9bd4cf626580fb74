package policy

import (
	"testing"

	"vmnet/bridge/portrate"
)

func TestRates(t *testing.T) {
	p := parse(t, `rules:
- users: [1000]
  bridges: [br0]
  max-rate-up: "100M,20kpps"
  max-rate-down: 1G
`)
	rates := func(up, down string, burst uint64) Request {
		q := Request{UID: 1000, Bridge: "br0", Rates: portrate.Config{Burst: burst}}
		for text, l := range map[string]*portrate.Limit{up: &q.Rates.Up, down: &q.Rates.Down} {
			var err error
			if *l, err = portrate.ParseLimit(text); err != nil {
				t.Fatal(err)
			}
		}
		return q
	}
	for _, tc := range []struct {
		q    Request
		want string
	}{
		{rates("100M,20kpps", "1G", 0), "policy.yaml:2"},
		{rates("1M,500pps", "500M,10kpps", 16<<10), "policy.yaml:2"},
		{
			Request{UID: 1000, Bridge: "br0"},
			"denied: policy.yaml:4: a rate of at most 100M,20kpps must be asked for " +
				"(ask with --rate-up 100M,20kpps, which QEMU's bridge helper and scripts cannot)",
		},
		{
			rates("100M", "1G", 0),
			"denied: policy.yaml:4: a rate of 100M is more than 100M,20kpps (ask with --rate-up 100M,20kpps)",
		},
		{
			rates("50M,10kpps", "2G", 0),
			"denied: policy.yaml:5: a rate of 2G is more than 1G (ask with --rate-down 1G)",
		},
		{
			rates("50M,10kpps", "1G", 4<<20),
			"denied: policy.yaml:4: a burst of 4M is more than 3125000, that of 100M,20kpps (ask without --burst)",
		},
	} {
		checkVerdict(t, p.Decide(tc.q), tc.want)
	}
	for _, bad := range []string{"none", "fast", "[100M]", "100Mbps"} {
		text := "rules: [{users: [1000], bridges: [br0], max-rate-up: " + bad + "}]\n"
		if _, err := Parse("policy.yaml", []byte(text)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
