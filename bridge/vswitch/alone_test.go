package vswitch

import (
	"slices"
	"testing"

	"vmnet/bridge/brport"
)

func TestAlone(t *testing.T) {
	isolated := PortConfig{Settings: brport.Settings{Isolated: true}}
	for name, c := range map[string]struct {
		ports   []PortConfig
		filters bool
		want    []int
	}{
		"none":                         {},
		"one":                          {ports: []PortConfig{access(10)}},
		"plain":                        {ports: []PortConfig{{}, {}}},
		"plain, filtered":              {ports: []PortConfig{{}, {}}, filters: true},
		"a VLAN without its trunk":     {ports: []PortConfig{{}, access(10), trunk(1, 2, 3)}, want: []int{1}},
		"plain ports beside a trunk":   {ports: []PortConfig{{}, {}, trunk(0, 2)}, want: []int{2}},
		"plain ports and VLAN 1":       {ports: []PortConfig{{}, access(1)}},
		"tagged VLAN 1":                {ports: []PortConfig{{}, trunk(0, 1)}},
		"one plain beside an access":   {ports: []PortConfig{{}, access(10)}, want: []int{0, 1}},
		"all VLANs":                    {ports: []PortConfig{{}, access(10), trunkAll(0)}},
		"trunks that share one":        {ports: []PortConfig{trunk(0, 2, 3), trunk(0, 3, 4), trunk(0, 5)}, want: []int{2}},
		"native to tagged":             {ports: []PortConfig{trunk(7, 2), trunk(0, 7)}},
		"isolated guests":              {ports: []PortConfig{isolated, isolated}, want: []int{0, 1}},
		"isolated guests, and an exit": {ports: []PortConfig{isolated, isolated, {}}},
		"an isolated one alone":        {ports: []PortConfig{isolated, isolated, access(2), access(2)}, want: []int{0, 1}},
	} {
		if got := Alone(c.ports, c.filters); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
