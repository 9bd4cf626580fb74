package integrate

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/network/config"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/tool"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// Chains by which a firewall is known.
const (
	dockerTable    = `{"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}`
	ufwTable       = `{"chain": {"family": "ip", "table": "filter", "name": "ufw-before-forward"}}`
	firewalldTable = `{"table": {"family": "inet", "name": "firewalld"}}`
)

// TestCompare: what a firewall lacks, and what it has of a network, by what its programs print.
func TestCompare(t *testing.T) {
	const (
		in    = "-i lab -m comment --comment vmnet-lab -j ACCEPT"
		out   = "-o lab -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment vmnet-lab -j ACCEPT"
		chain = "-N DOCKER-USER\n-A DOCKER-USER "
		zone  = "firewall-cmd --permanent --new-zone=vmnet, with target ACCEPT, and firewall-cmd --reload"
	)
	wanted := &config.Network{Name: "lab", Integrate: true, Subnet: netip.MustParsePrefix("10.66.0.0/24")}
	forwards := *wanted
	forwards.Forwards = []config.Forward{{Protocol: "tcp", First: 1, Last: 1, Guest: "10.66.0.9"}}
	gone := &config.Network{Name: "lab"}
	for _, tc := range []struct {
		name             string
		n                *config.Network
		table            string
		says             map[string]string
		missing, surplus []string
	}{
		{"nothing", wanted, "", nil, nil, nil},
		{
			"Docker", wanted, dockerTable,
			map[string]string{"iptables -w -S DOCKER-USER": chain + "-j RETURN\n"},
			[]string{"iptables -I DOCKER-USER " + in, "iptables -I DOCKER-USER " + out},
			nil,
		},
		{
			"Docker has half", wanted, dockerTable,
			map[string]string{"iptables -w -S DOCKER-USER": chain + in + "\n"},
			[]string{"iptables -I DOCKER-USER " + out},
			nil,
		},
		{
			"Docker has those of another network, and of an older vmnet", gone, dockerTable,
			map[string]string{
				"iptables -w -S DOCKER-USER": chain + strings.ReplaceAll(in, "lab", "lab2") +
					"\n-A DOCKER-USER -p tcp -m comment --comment vmnet-lab -j ACCEPT\n",
				"ufw show added": "", "firewall-offline-cmd --list-all-zones": "",
			},
			nil,
			[]string{"iptables -I DOCKER-USER -p tcp -m comment --comment vmnet-lab -j ACCEPT"},
		},
		{
			"ufw", &forwards, ufwTable,
			map[string]string{"ufw show added": "Added user rules:\nufw route allow in on lab comment 'mine'\n"},
			[]string{"ufw route allow out on lab comment vmnet-lab"},
			nil,
		},
		{
			"ufw has one too many", wanted, ufwTable,
			map[string]string{"ufw show added": "ufw route allow in on lab comment 'vmnet-lab'\n" +
				"ufw route allow out on lab comment 'vmnet-lab'\nufw route allow in on lab2 comment 'vmnet-lab2'\n"},
			nil,
			[]string{"ufw route allow out on lab comment vmnet-lab"},
		},
		{
			"firewalld", wanted, firewalldTable,
			map[string]string{
				"firewall-cmd --permanent --list-all-zones": "public\n  interfaces: eth0\n",
				"firewall-cmd --list-all-zones":             "public (active)\n  interfaces: eth0\n",
			},
			[]string{
				zone, "firewall-cmd --permanent --zone=vmnet --add-interface=lab",
				"firewall-cmd --zone=vmnet --add-interface=lab",
			},
			nil,
		},
		{
			"firewalld, where the administrator has decided", wanted, firewalldTable,
			map[string]string{
				"firewall-cmd --permanent --list-all-zones": "trusted\n  interfaces: lab\n",
				"firewall-cmd --list-all-zones":             "trusted (active)\n  interfaces: a lab\n",
			},
			nil, nil,
		},
		{
			"firewalld, with another network", gone, firewalldTable,
			map[string]string{
				"ufw show added": "",
				"firewall-cmd --permanent --list-all-zones": "vmnet\n  interfaces: lab lan\n",
				"firewall-cmd --list-all-zones":             "vmnet (active)\n  interfaces: lan lab\n",
			},
			nil,
			[]string{
				"firewall-cmd --permanent --zone=vmnet --add-interface=lab",
				"firewall-cmd --zone=vmnet --add-interface=lab",
			},
		},
		{
			"firewalld that is stopped", gone, "",
			map[string]string{
				"ufw show added":                        "",
				"firewall-offline-cmd --list-all-zones": "vmnet\n  interfaces: lab\n",
			},
			nil,
			[]string{"firewall-offline-cmd --zone=vmnet --add-interface=lab", zone},
		},
		{"none is installed", gone, "", nil, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rules, err := nft.Parse([]byte(`{"nftables": [` + tc.table + `]}`))
			if err != nil {
				t.Fatal(err)
			}
			h := &Host{Ruleset: rules, Run: func(_ context.Context, argv ...string) (string, error) {
				said, ok := tc.says[strings.Join(argv, " ")]
				if !ok {
					return "", tool.ErrNotInstalled
				}
				return said, nil
			}}
			missing, surplus, err := h.Compare(t.Context(), tc.n)
			if err != nil || !slices.Equal(texts(missing), tc.missing) || !slices.Equal(texts(surplus), tc.surplus) {
				t.Errorf("lacks %q\nhas %q\n%v", texts(missing), texts(surplus), err)
			}
		})
	}
}

func texts(rules []Rule) (all []string) {
	for _, r := range rules {
		all = append(all, r.Text)
	}
	return all
}

// TestCompareErrors: an active firewall whose program fails, or is not there, is an error.
func TestCompareErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, table := range []string{dockerTable, ufwTable, firewalldTable} {
		rules, err := nft.Parse([]byte(`{"nftables": [` + table + `]}`))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []error{broken, tool.ErrNotInstalled} {
			h := &Host{Ruleset: rules, Run: func(context.Context, ...string) (string, error) { return "", want }}
			_, _, err := h.Compare(t.Context(), &config.Network{Name: "lab", Integrate: true})
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", table, err, want)
			}
		}
	}
}

func FuzzParseZones(f *testing.F) {
	f.Add("public (active)\n  interfaces: eth0 eth1\n\nvmnet\n  interfaces:\n")
	f.Add("  interfaces: a\n")
	f.Fuzz(func(t *testing.T, out string) {
		for _, name := range slices.Collect(maps.Keys(parseZones(out))) {
			if strings.ContainsAny(name, " \n") {
				t.Errorf("zone %q", name)
			}
		}
	})
}
