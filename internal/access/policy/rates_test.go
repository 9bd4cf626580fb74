package policy

import (
	"strings"
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

func TestShape(t *testing.T) {
	p := parse(t, `rules:
- {users: [1000], bridges: [br0], shape: deny}
- users: [1001]
  bridges: [br0]
  max-rate-up: 100M
  shape: require
- {users: [1002], bridges: [br0]}
`)
	up, err := portrate.ParseLimit("100M")
	if err != nil {
		t.Fatal(err)
	}
	asks := func(uid int, shape bool) Request {
		return Request{UID: uid, Bridge: "br0", Rates: portrate.Config{Up: up, Shape: shape}}
	}
	for want, q := range map[string]Request{
		"denied: policy.yaml:2: shaping may not be asked for (ask without --shape, or write shape: allow)": asks(1000, true),
		"denied: policy.yaml:6: shaping must be asked for (ask with --shape, " +
			"which QEMU's bridge helper and scripts cannot)": asks(1001, false),
		"policy.yaml:2": asks(1000, false),
		"policy.yaml:3": asks(1001, true),
		"policy.yaml:7": asks(1002, true),
	} {
		checkVerdict(t, p.Decide(q), want)
	}
	checkVerdict(t, p.Decide(asks(1002, false)), "policy.yaml:7")
	for text, want := range map[string]string{
		"- {users: [1], bridges: [br0],\n   shape: yes}":     "policy.yaml:3:11: shape: \"yes\": want allow, require, deny",
		"- {users: [1], bridges: [br0],\n   shape: [deny]}":  "policy.yaml:3:11: ",
		"- {users: [1], bridges: [br0],\n   shape: require}": "policy.yaml:2:3: shape: require shapes a rate in bits",
	} {
		rejects(t, "rules:\n"+text+"\n", want)
	}
}

// TestOVS: a user is given no place in OVN's network and no database that the rule does not name.
func TestOVS(t *testing.T) {
	p := parse(t, `rules:
- users: [1000]
  bridges: [br-int]
  iface-ids: ["alice-*"]
  ovsdb: [/run/ovs-a/db.sock]
- {users: [1001], bridges: [br-int]}
`)
	asks := func(uid int, id, db string) Request {
		return Request{UID: uid, Bridge: "br-int", IfaceID: id, OVSDB: db}
	}
	for _, tc := range []struct {
		q    Request
		want string
	}{
		{asks(1000, "alice-1", "/run/ovs-a/db.sock"), "policy.yaml:2"},
		{asks(1001, "", ""), "policy.yaml:6"},
		{asks(1000, "bob-1", ""), "denied: policy.yaml:4: iface-id bob-1 is not among alice-* " +
			"(ask without --iface-id, or add bob-1 to iface-ids)"},
		{asks(1000, "alice-1", "/tmp/db"), "denied: policy.yaml:5: database \"/tmp/db\" is not among " +
			"/run/ovs-a/db.sock (ask without --ovsdb, or add \"/tmp/db\" to ovsdb)"},
		{asks(1001, "alice-1", ""), "denied: policy.yaml:6: iface-id alice-1 may not be asked for " +
			"(ask without --iface-id, or add alice-1 to iface-ids)"},
	} {
		checkVerdict(t, p.Decide(tc.q), tc.want)
	}
	var none *Policy
	checkVerdict(t, none.Decide(asks(1000, "alice-1", "")), "denied: /etc/vmnet/policy.yaml: it does not exist, "+
		"and without it iface-id alice-1 may not be asked for (write it as policy.yaml(5) describes)\nrules:\n"+
		"  - {users: [\"*\"], bridges: [\"*\"]}\n  - {users: [1000], bridges: [br-int], iface-ids: [alice-1]}")
	for text, want := range map[string]string{
		"iface-ids: [a/b]": "policy.yaml:3:16: iface-ids: \"a/b\" is not a name or pattern",
		"ovsdb: [db.sock]": "policy.yaml:3:12: ovsdb: \"db.sock\": want a socket's absolute and clean path",
	} {
		rejects(t, "rules:\n- {users: [1], bridges: [br-int],\n   "+text+"}\n", want)
	}
}

func rejects(t *testing.T, text, want string) {
	t.Helper()
	if _, err := Parse("policy.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %v, want %q", text, err, want)
	}
}
