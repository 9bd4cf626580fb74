package hostaccess

import (
	"net/netip"
	"slices"
	"testing"

	"vmnet/internal/kernel/rtnl"
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

// TestRecognize: a macvlan is a host access by its alias, or by a name and an address that only
// vmnet chooses.
func TestRecognize(t *testing.T) {
	for name, tc := range map[string]struct {
		link    rtnl.Link
		parent  string // its present name
		want    string
		unnamed bool
	}{
		"by its alias":            {rtnl.Link{Name: "eth0-host", Alias: aliasPrefix + "eth0"}, "eth0", "eth0", false},
		"its parent was renamed":  {rtnl.Link{Name: "eth0-host", Alias: aliasPrefix + "eth0"}, "lan0", "lan0", false},
		"its parent was moved":    {rtnl.Link{Name: "eth0-host", Alias: aliasPrefix + "eth0"}, "", "eth0", false},
		"a name with a space":     {rtnl.Link{Name: "x-host", Alias: aliasPrefix + "eth%200"}, "eth0", "", false},
		"a broken escape":         {rtnl.Link{Name: "x-host", Alias: aliasPrefix + "eth%2"}, "eth0", "", false},
		"without its alias":       {rtnl.Link{Name: "eth0-host", MAC: macOf("eth0")}, "eth0", "eth0", true},
		"with another's address":  {rtnl.Link{Name: "eth0-host", MAC: macOf("eth1")}, "eth0", "", false},
		"with another name":       {rtnl.Link{Name: "mine", MAC: macOf("eth0")}, "eth0", "", false},
		"with a foreign alias":    {rtnl.Link{Name: "eth0-host", MAC: macOf("eth0"), Alias: "mine"}, "eth0", "", false},
		"somebody else's macvlan": {rtnl.Link{Name: "mac0"}, "eth0", "", false},
	} {
		m, ok := recognize(&tc.link, tc.parent)
		if ok != (tc.want != "") || ok && (m.parent != tc.want || m.unnamed != tc.unnamed) {
			t.Errorf("%s: %v, on %q, unnamed %v; want %q, unnamed %v",
				name, ok, m.parent, m.unnamed, tc.want, tc.unnamed)
		}
	}
}

func TestShadowed(t *testing.T) {
	m := accessLink{
		Link: &rtnl.Link{Name: "eth0-host"}, parent: "eth0",
		addresses: prefixes("10.9.0.1/24", "192.0.2.9/24", "fd00:9::1/64"),
	}
	for name, tc := range map[string]struct {
		addrs []netip.Prefix
		want  int
	}{
		"no address":            {nil, 0},
		"other networks":        {prefixes("10.8.0.1/24", "fd00:8::1/64"), 0},
		"one network, twice":    {prefixes("192.0.2.1/24", "192.0.2.2/25"), 1},
		"one of each family":    {prefixes("192.0.2.1/24", "fd00:9::2/64"), 2},
		"a network around both": {prefixes("10.0.0.1/8"), 1},
	} {
		if got := shadowed(m, tc.addrs); len(got) != tc.want {
			t.Errorf("%s: %q, want %d", name, got, tc.want)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		parent string
		on     bool
		addrs  []netip.Prefix
		fails  bool
	}{
		"on":                     {"eth0", true, nil, false},
		"with addresses":         {"eth0", true, prefixes("10.0.0.1/24", "fd00::1/64"), false},
		"off":                    {"eth0", false, nil, false},
		"no parent":              {"", true, nil, true},
		"off, with an address":   {"eth0", false, prefixes("10.0.0.1/24"), true},
		"no address at all":      {"eth0", true, make([]netip.Prefix, 1), true},
		"a multicast one":        {"eth0", true, prefixes("224.0.0.1/24"), true},
		"the unspecified one":    {"eth0", true, prefixes("0.0.0.0/0"), true},
		"an IPv4-mapped address": {"eth0", true, prefixes("::ffff:10.0.0.1/120"), true},
	} {
		if err := validate(tc.parent, tc.on, tc.addrs); (err != nil) != tc.fails {
			t.Errorf("%s: %v, want an error: %v", name, err, tc.fails)
		}
	}
}

// TestSteps: what is missing of a macvlan is added, and nothing else changes.
func TestSteps(t *testing.T) {
	whole := &accessLink{Link: &rtnl.Link{Name: "eth0-host", Up: true}, addresses: prefixes("10.9.0.1/24")}
	down := &accessLink{Link: &rtnl.Link{Name: "eth0-host"}}
	unnamed := &accessLink{Link: &rtnl.Link{Name: "enp0s31f6-long", AltNames: []string{"long"}}, unnamed: true}
	for name, tc := range map[string]struct {
		there   *accessLink
		altName string
		addrs   []netip.Prefix
		want    []string
	}{
		"a new one": {
			nil, "", prefixes("10.9.0.1/24"),
			[]string{"alias", "no router", "address 10.9.0.1/24", "up"},
		},
		"a new one with a long name": {nil, "long", nil, []string{"alias", "altname", "no router", "up"}},
		"the same address twice": {
			nil, "", prefixes("10.9.0.1/24", "10.9.0.1/24"),
			[]string{"alias", "no router", "address 10.9.0.1/24", "up"},
		},
		"all is there": {whole, "", prefixes("10.9.0.1/24"), nil},
		"another address": {
			whole, "", prefixes("10.9.0.1/24", "10.9.1.1/24"),
			[]string{"address 10.9.1.1/24"},
		},
		"it is down":                  {down, "", nil, []string{"up"}},
		"cut short, with its altname": {unnamed, "long", nil, []string{"alias", "no router", "up"}},
	} {
		c := &completion{parentLink: &rtnl.Link{Name: "eth0"}, name: "eth0-host", altName: tc.altName}
		var got []string
		for _, s := range c.steps(tc.there, tc.addrs) {
			got = append(got, s.Name)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
