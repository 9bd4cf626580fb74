package nicflags

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"vmnet/tapmgr/nic"
)

// requests use each flag of a NIC at least once, with values in the form that Words returns.
var requests = []string{
	"--bridge br0 --vlan 10 --isolated=true --hairpin=true --no-learning=true --no-flood=true --forward lacp,lldp",
	"--bridge br0 --trunk 2-5,7 --native 7 --mac 52:54:00:00:00:01 --mtu 1400 --queues auto --vhost off",
	"--bridge br-int --iface-id g1 --ovsdb /run/ovs/db.sock",
	"--network lab --ip 10.66.0.20 --ip fd66::20 --queues 4",
	"--bridge br0 --ip 192.0.2.7 --ip 2001:db8::/64 --port-security all --allow-ethertype 0x88f7 --allow-ethertype 0x88b5",
	"--bridge br0 --allow-in tcp:22,from=10.0.0.0/8 --allow-in icmp",
	"--bridge br0 --rate-up 100M,20kpps --rate-down 2500M --burst 256k",
	"--bridge br0 --rate-up 100M --shape=true",
	"--routed eth0 --ip 192.0.2.7",
	"--switch sw0 --lock-mac=true --storm 100 --max-addresses off --via monitor,socket --vhost on",
	"--macvtap eth0 --mode source --source-mac 52:54:00:00:00:02 --source-mac 52:54:00:00:00:03 --rx-filter none",
	"--macvtap eth0 --mode passthru --nopromisc=true --model e1000 --device-opt a=b --device-opt c=d",
	"--ipvtap wlan0 --mode l3 --flag vepa --ip 192.0.2.7/24 --ip 192.0.2.8 --rx-filter mirror",
}

// TestWordsAskForTheSame: the Words of a Spec are the flags that it was made of. No flag is missing
// in requests, so none is missing in Words.
func TestWordsAskForTheSame(t *testing.T) {
	used := map[string]bool{"nic": true}
	for _, args := range requests {
		want, err := parse(args)
		if err != nil {
			t.Fatal(args, err)
		}
		fs, n := All()
		var text []string
		for _, w := range Words(want) {
			used[w.Flag] = true
			if len(w.Values) > 1 && !Repeatable(fs.Lookup(w.Flag)) {
				t.Errorf("%s: --%s is given %q", args, w.Flag, w.Values)
			}
			for _, v := range w.Values {
				text = append(text, "--"+w.Flag, v)
				if err := fs.Set(w.Flag, v); err != nil {
					t.Errorf("%s: --%s %s: %v", args, w.Flag, v, err)
				}
			}
		}
		if got, err := n.Spec(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\n%q\n%+v\nwant %+v", args, err, text, got, want)
		}
		asked := strings.Fields(strings.ReplaceAll(args, "=true", " true"))
		slices.Sort(asked)
		if slices.Sort(text); !slices.Equal(text, asked) {
			t.Errorf("%q, want %q", text, asked)
		}
	}
	fs, _ := All()
	fs.VisitAll(func(f *pflag.Flag) {
		if !used[f.Name] {
			t.Errorf("Words has no --%s, or requests does not use it", f.Name)
		}
	})
}

func TestRepeatable(t *testing.T) {
	fs, _ := All()
	fs.VisitAll(func(f *pflag.Flag) {
		if told := strings.Contains(f.Usage, "repeatable"); told != Repeatable(f) {
			t.Errorf("--%s is repeatable: %v, and its usage says %v", f.Name, Repeatable(f), told)
		}
	})
}

// TestWordsOfARecord: what an alias keeps of a request is asked for by the same flags.
func TestWordsOfARecord(t *testing.T) {
	for args, text := range map[string]string{
		"--bridge br0 --vlan 10 --queues 2 --vhost off --mac 52:54:00:00:00:01 --model e1000": "vmnet vm=P2 nic=net0 " +
			"type=tap source=br0 port=vlan:10 mac=52:54:00:00:00:01 model=e1000 queues=2",
		"--network lab --ip 10.66.0.20 --queues 1 --vhost on --mac 52:54:00:00:00:01 --model e1000 --mtu 1400": "vmnet " +
			"vm=P2 nic=net0 type=tap source=lab network=lab ip=10.66.0.20 mac=52:54:00:00:00:01 model=e1000 vhost=on mtu=1400",
		"--bridge br0 --ip 192.0.2.7 --ip 2001:db8::/64 --port-security mac,ip --allow-ethertype 0x88f7 --queues 1 --vhost off --mac 52:54:00:00:00:01 --model e1000": "vmnet " +
			"vm=P2 nic=net0 type=tap source=br0 ip=192.0.2.7 security=mac,ip types=0x88f7 nets=2001:db8::/64 mac=52:54:00:00:00:01 model=e1000",
		"--ipvtap eth0 --mode l2 --ip 192.0.2.7 --port-security ip --queues 1 --vhost off --mac 52:54:00:00:00:01 --model e1000": "vmnet " +
			"vm=P2 nic=net0 type=ipvtap source=eth0 ip=192.0.2.7 security=ip mode=l2 mac=52:54:00:00:00:01 model=e1000",
		"--bridge br0 --rate-down 1G --burst 1M --queues 1 --vhost off --mac 52:54:00:00:00:01 --model e1000": "vmnet " +
			"vm=P2 nic=net0 type=tap source=br0 down=1G burst=1M mac=52:54:00:00:00:01 model=e1000",
		"--routed eth0 --ip 192.0.2.7 --queues 1 --vhost off --mac 52:54:00:00:00:01 --model e1000": "vmnet vm=P2 " +
			"nic=net0 type=routed source=eth0 ip=192.0.2.7 mac=52:54:00:00:00:01 model=e1000",
		"--switch sw0 --via monitor,socket --lock-mac --storm off --queues 1 --vhost off --mac 52:54:00:00:00:01 --model e1000": "vmnet " +
			"vm=P2 nic=net0 type=socket source=sw0 switch=on lock=on storm=-1 mac=52:54:00:00:00:01 model=e1000 via=monitor",
		"--macvtap eth0 --mode vepa --rx-filter none --queues 1 --vhost off --mac 52:54:00:00:00:01 --model e1000": "vmnet " +
			"vm=P2 nic=net0 type=macvtap source=eth0 mode=vepa rx=none mac=52:54:00:00:00:01 model=e1000",
	} {
		r, ok := nic.ParseRecord(text)
		want, err := parse(args)
		if !ok || err != nil {
			t.Fatal(text, ok, err)
		}
		if got := Words(r.Spec()); !reflect.DeepEqual(got, Words(want)) {
			t.Errorf("%s:\n%v, want\n%v", text, got, Words(want))
		}
	}
}
