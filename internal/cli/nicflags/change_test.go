package nicflags

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"vmnet/tapmgr/nic"
)

// TestEdit: what flags change of a NIC, and what stays.
func TestEdit(t *testing.T) {
	const secured = " --ip 192.0.2.7 --port-security all"
	for _, tc := range []struct{ now, flags, want string }{
		{"--bridge br0 --vlan 10", "--isolated", "--bridge br0 --vlan 10 --isolated=true"},
		{"--bridge br0 --vlan 10", "--trunk 2-5", "--bridge br0 --trunk 2-5"},
		{"--bridge br0 --trunk 2-5 --native 2", "--vlan 7", "--bridge br0 --vlan 7"},
		{"--bridge br0 --vlan 10 --isolated=true", "--vlan none --isolated=no", "--bridge br0"},
		{"--network lab --ip 10.66.0.20", "--bridge br0", "--bridge br0"},
		{"--bridge br0" + secured, "--bridge br1", "--bridge br1" + secured},
		{"--switch sw0" + secured, "--switch sw1", "--switch sw1" + secured},
		{"--macvtap eth0" + secured, "--mode private", "--macvtap eth0 --mode private" + secured},
		{"--bridge br0" + secured, "--ip 192.0.2.8", "--bridge br0 --ip 192.0.2.8 --port-security all"},
		{"--bridge br0 --port-security all --ip 192.0.2.7", "--port-security none", "--bridge br0"},
		{"--network lab --port-security all --ip 10.66.0.20", "--port-security none", "--network lab --ip 10.66.0.20"},
		{"--ipvtap eth0 --port-security ip --ip 192.0.2.7", "--port-security none", "--ipvtap eth0 --ip 192.0.2.7"},
		{"--bridge br0", "--link down", "--bridge br0 --link down"},
	} {
		now, err := parse(tc.now)
		if err != nil {
			t.Fatal(tc.now, err)
		}
		fs := pflag.NewFlagSet("set", pflag.ContinueOnError)
		c := AddChange(fs)
		if err := fs.Parse(strings.Fields(tc.flags)); err != nil {
			t.Fatal(tc.flags, err)
		}
		got, err := c.Edit(now)
		want, wantErr := parse(strings.TrimSuffix(tc.want, " --link down"))
		if err != nil || wantErr != nil {
			t.Errorf("%s, %s: %v, %v", tc.now, tc.flags, err, wantErr)
		}
		want.LinkDown = strings.HasSuffix(tc.want, "down")
		if diff := Differences(want, got); len(diff) > 0 {
			t.Errorf("%s, %s: %+v, want %s", tc.now, tc.flags, diff, tc.want)
		}
	}
	if _, err := (&Change{}).Edit(nic.Spec{Bridge: "br0"}); err != nil {
		t.Error(err)
	}
}
