package vswitch

import (
	"slices"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
)

func TestAlone(t *testing.T) {
	isolated := vport.Config{Settings: brport.Settings{Isolated: true}}
	for name, c := range map[string]struct {
		ports   []vport.Config
		filters bool
		want    []int
	}{
		"none":                       {},
		"one":                        {ports: []vport.Config{access(10)}},
		"plain":                      {ports: []vport.Config{{}, {}}},
		"plain, filtered":            {ports: []vport.Config{{}, {}}, filters: true},
		"a VLAN without its trunk":   {ports: []vport.Config{{}, access(10), trunk(1, 2, 3)}, want: []int{1}},
		"plain ports beside a trunk": {ports: []vport.Config{{}, {}, trunk(0, 2)}, want: []int{2}},
		"plain ports and VLAN 1":     {ports: []vport.Config{{}, access(1)}},
		"tagged VLAN 1":              {ports: []vport.Config{{}, trunk(0, 1)}},
		"one plain beside an access": {ports: []vport.Config{{}, access(10)}, want: []int{0, 1}},
		"all VLANs":                  {ports: []vport.Config{{}, access(10), trunkAll(0)}},
		"trunks that share one": {
			ports: []vport.Config{trunk(0, 2, 3), trunk(0, 3, 4), trunk(0, 5)},
			want:  []int{2},
		},
		"native to tagged":             {ports: []vport.Config{trunk(7, 2), trunk(0, 7)}},
		"isolated guests":              {ports: []vport.Config{isolated, isolated}, want: []int{0, 1}},
		"isolated guests, and an exit": {ports: []vport.Config{isolated, isolated, {}}},
		"an isolated one alone": {
			ports: []vport.Config{isolated, isolated, access(2), access(2)},
			want:  []int{0, 1},
		},
	} {
		if got := Alone(c.ports, c.filters); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
