package nicflags

import (
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
	if s, err := parse("--bridge br0 --via monitor"); err != nil || s.Switch != nil || s.Via != nic.ViaMonitor {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSwitchFlagsRefuse(t *testing.T) {
	for args, want := range map[string]string{
		"--switch sw0 --via magic":       "want libvirt or monitor or auto or socket or tap",
		"--switch sw0 --via socket,tap":  "another word of the same kind",
		"--via monitor,libvirt":          "another word of the same kind",
		"--bridge br0 --via socket":      "--via socket goes with --switch",
		"--bridge br0 --lock-mac":        "go with --switch",
		"--bridge br0 --storm 5":         "go with --switch",
		"--switch sw0 --bridge br0":      "--bridge and --switch: a NIC can have only one of them",
		"--switch sw0 --macvtap eth0":    "--switch and --macvtap",
		"--switch sw0 --storm 0":         "want a number of at least 1, or off",
		"--switch sw0 --max-addresses x": "want a number of at least 1, or off",
	} {
		if s, err := parse(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v: want %q", args, s, err, want)
		}
	}
}
