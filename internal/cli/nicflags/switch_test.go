package nicflags

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"vmnet/tapmgr/nic"
)

func parse(args string) (nic.Spec, error) {
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	n := AddNIC(fs)
	n.AddSwitch(fs)
	n.AddVia(fs, true)
	if err := fs.Parse(strings.Fields(args)); err != nil {
		return nic.Spec{}, err
	}
	return n.Spec()
}

func TestSwitchFlags(t *testing.T) {
	s, err := parse("--switch sw0 --via monitor,socket --lock-mac --storm off --max-addresses 7 --vlan 10")
	if err != nil {
		t.Fatal(err)
	}
	want := nic.Switch{Name: "sw0", By: nic.BySocket, LockMAC: true, Storm: nic.NoLimit, MaxAddresses: 7}
	if s.Switch == nil || *s.Switch != want || s.Via != nic.ViaMonitor || s.Port.VLAN != 10 {
		t.Errorf("%+v, %+v", s, s.Switch)
	}
	s, err = parse("--network lab --ip 10.66.0.20 --ip fd66::20")
	if err != nil || s.Network != "lab" || s.Lower != nil || nic.FormatIPs(s.IP) != "10.66.0.20,fd66::20" {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := parse("--ipvtap eth0 --ip 10.66.0.20/24"); err != nil || len(s.IP) != 0 ||
		s.Lower.Addrs[0].String() != "10.66.0.20/24" {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = parse("--network lab --ip 10.66.0.20 --via vhost-user")
	if err != nil || s.Network != "lab" || s.Switch == nil || *s.Switch != (nic.Switch{By: nic.ByVhostUser}) {
		t.Errorf("%+v, %v", s, err)
	}
	s.VM = "P2"
	if err := errors.Join(s.Validate(), s.CheckPlace()); !errors.Is(err, nic.ErrInvalid) ||
		!strings.Contains(err.Error(), "the caller has no network lab") {
		t.Errorf("on a network that is not the caller's: %v", err)
	}
	if s, err := parse("--bridge br0 --via monitor"); err != nil || s.Switch != nil || s.Via != nic.ViaMonitor {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSwitchFlagsRefuse(t *testing.T) {
	for args, want := range map[string]string{
		"--switch sw0 --via magic":        "want libvirt or monitor or auto or socket or tap",
		"--switch sw0 --via socket,tap":   "another word of the same kind",
		"--via monitor,libvirt":           "another word of the same kind",
		"--bridge br0 --via socket":       "--via socket goes with --switch",
		"--bridge br0 --lock-mac":         "go with --switch",
		"--network lab --lock-mac":        "go with --switch",
		"--bridge br0 --storm 5":          "go with --switch",
		"--switch sw0 --bridge br0":       "--bridge and --switch: a NIC can have only one of them",
		"--network lab --bridge br0":      "--bridge and --network: a NIC can have only one of them",
		"--network lab --macvtap eth0":    "--network and --macvtap: a NIC can have only one of them",
		"--network lab --ip 10.66.0.0/24": "want an address without /BITS",
		"--network lab --ip lab":          "want an IP address",
		"--network lab --ip fe80::1%eth0": "want an IP address",
		"--bridge br0 --ip 10.66.0.20":    "--ip goes with --network, --routed, --ipvtap or --port-security",
		"--macvtap eth0 --ip 10.66.0.20":  "--ip goes with --network, --routed, --ipvtap or --port-security",
		"--switch sw0 --macvtap eth0":     "--switch and --macvtap",
		"--switch sw0 --storm 0":          "want a number of at least 1, or off",
		"--switch sw0 --max-addresses x":  "want a number of at least 1, or off",
	} {
		if s, err := parse(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v: want %q", args, s, err, want)
		}
	}
}
