package ovstest

import (
	"os"
	"os/exec"
	"testing"

	"vmnet/internal/nstest"
)

// An OVN is the central part of OVN: both databases in one server, and ovn-northd. They end with
// the test.
type OVN struct{ *OVS }

// NewOVN starts the central part of OVN without a logical network.
func NewOVN(tb testing.TB) *OVN {
	tb.Helper()
	require(tb)
	for _, program := range []string{"ovn-northd", "ovn-controller", "ovn-nbctl", "ovn-sbctl"} {
		_, err := exec.LookPath(program)
		nstest.Require(tb, "ovn", err == nil, "run testvm/setup.sh, which installs ovn-central and ovn-host")
	}
	v := &OVN{prepared(tb, nil)}
	for _, db := range []string{"nb", "sb"} {
		v.tool("ovsdb-tool", "create", v.file(db+".db"), "/usr/share/ovn/ovn-"+db+".ovsschema")
	}
	v.StartDatabase()
	northd := v.start("ovn-northd", "--ovnnb-db=unix:"+v.Socket(), "--ovnsb-db=unix:"+v.Socket(),
		"--unixctl="+v.file("northd.ctl"), "--log-file="+v.file("northd.log"), "-vconsole:off")
	tb.Cleanup(func() { end(&northd) })
	return v
}

// Nbctl changes the logical network, or reads it, and returns the output without the last newline.
func (v *OVN) Nbctl(args ...string) string {
	v.tb.Helper()
	return v.tool("ovn-nbctl", append([]string{"--timeout=30", "--db=unix:" + v.Socket()}, args...)...)
}

// Sbctl is Nbctl for what OVN has made of it.
func (v *OVN) Sbctl(args ...string) string {
	v.tb.Helper()
	return v.tool("ovn-sbctl", append([]string{"--timeout=30", "--db=unix:" + v.Socket()}, args...)...)
}

// StartChassis makes a host with a switch a chassis, of which tunnels begin with the address, and
// returns the device that must have it: the one on which other chassis are, or, as tunnels in user
// space demand, a bridge br-phy with that device. OVN makes br-int.
func (v *OVN) StartChassis(o *OVS, name, device, address string) (addressed string) {
	v.tb.Helper()
	addressed = device
	if o.datapath == "netdev" {
		addressed = "br-phy"
		o.AddBridge(addressed)
		o.Vsctl("--timeout=30", "add-port", addressed, device)
	}
	o.Vsctl("--timeout=30", "set", "Open_vSwitch", ".",
		"external_ids:system-id="+name, "external_ids:ovn-remote=unix:"+v.Socket(),
		"external_ids:ovn-encap-type=geneve", "external_ids:ovn-encap-ip="+address,
		"external_ids:ovn-bridge-datapath-type="+o.datapath)
	controller := o.start("ovn-controller", "unix:"+o.Socket(),
		"--log-file="+o.ControllerLog(), "-vconsole:off")
	v.tb.Cleanup(func() {
		end(&controller)
		if v.tb.Failed() {
			log, _ := os.ReadFile(o.ControllerLog())
			v.tb.Logf("ovn-controller of %s said:\n%s", name, log)
		}
	})
	return addressed
}

// ControllerLog is the path of ovn-controller's log.
func (o *OVS) ControllerLog() string { return o.file("controller.log") }
