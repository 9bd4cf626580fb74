package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/internal/nstest"
)

// TestLiveRoutedAnnounces: a machine on the LAN that knows a guest's address elsewhere learns the
// host's MAC address when a user starts the guest, if the program has the privilege for that.
func TestLiveRoutedAnnounces(t *testing.T) {
	h := newHost(t)
	h.policy(`{users: ["*"], uplinks: [eth0], ips: [192.0.2.11]}`)
	lan := h.far("192.0.2.1")
	h.ip(h.ns, "addr", "add", "192.0.2.2/24", "dev", "eth0")
	uplink, err := h.nl.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	const elsewhere = "02:00:00:00:00:99"
	neighbor := func() (out string) {
		if err := lan.Do(func() error {
			b, err := exec.Command("ip", "neigh", "show", "192.0.2.11").CombinedOutput()
			out = string(b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	launch := func() result {
		h.ip(lan, "neigh", "replace", "192.0.2.11", "lladdr", elsewhere, "dev", "far0", "nud", "stale")
		return h.nobodys("--vm", "P3", "--routed", "eth0", "--ip", "192.0.2.11", "--vmm", "env", "--", "/bin/sh", "-c",
			"grep Cap /proc/self/status")
	}
	h.ok(launch(), "CapPrm:\t0000000000000000")
	nstest.Eventually(t, 20*time.Second, "the LAN has the uplink's address", func() bool {
		return strings.Contains(neighbor(), uplink.MAC.String())
	})
	h.reconfigure(0o755, fileCaps(cap.NET_ADMIN))
	h.ok(launch(), "CapPrm:\t0000000000000000")
	if !strings.Contains(neighbor(), elsewhere) {
		t.Errorf("announced without CAP_NET_RAW: %s", neighbor())
	}
}
