package vport

import (
	"encoding/json"
	"net"
	"reflect"
	"testing"

	"vmnet/bridge/brport"
)

func TestConfigJSON(t *testing.T) {
	full := Config{
		Settings: brport.Settings{Trunk: []brport.VLANRange{{First: 2, Last: 5}}, Native: 7, Isolated: true},
		MTU:      9000, MACs: []net.HardwareAddr{{2, 0, 0, 0, 0, 1}}, MaxAddresses: 3, Storm: Storm{Broadcast: 10},
	}
	for _, test := range []struct {
		cfg  Config
		text string
	}{
		{Config{}, `{}`},
		{full, `{"trunk":[{"first":2,"last":5}],"native":7,"isolated":true,"mtu":9000,"max_addresses":3,"storm":{"broadcast":10},"macs":["02:00:00:00:00:01"]}`},
	} {
		b, err := json.Marshal(test.cfg)
		if err != nil || string(b) != test.text {
			t.Errorf("%s, %v", b, err)
		}
		var back Config
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, test.cfg) {
			t.Errorf("%+v, %v", back, err)
		}
	}
	for _, bad := range []string{`{"vlans":3}`, `{"macs":["x"]}`, `{"macs":[7]}`, `{"vlan":"3"}`, `[]`, `7`} {
		var cfg Config
		if err := json.Unmarshal([]byte(bad), &cfg); err == nil {
			t.Errorf("%s: %+v", bad, cfg)
		}
	}
}
