package main

import (
	"strings"
	"testing"

	"vmnet/internal/nstest"
)

func TestLiveNobodyGetsWhatIsAllowed(t *testing.T) {
	i := install(t)
	i.config("bridge.conf", "allow br0\n")
	ns := nstest.New(t)
	bridges(t, ns, "br0", "br1")
	_ = ns.Do(func() error {
		out, err := i.as(nobody, "--vm", "P3", "--bridge", "br0", "--queues", "2", "--", "/bin/sh", "-c", "echo $VMNET_JSON; grep Cap /proc/self/status").CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"interface":"P3-net0"`) || !strings.Contains(string(out), "CapPrm:\t0000000000000000") {
			t.Errorf("%v: %s", err, out)
		}
		out, err = i.as(nobody, "--vm", "P3", "--bridge", "br1", "--", "/bin/true").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "bridge.conf") {
			t.Errorf("br1: %v, %s", err, out)
		}
		return nil
	})
}
