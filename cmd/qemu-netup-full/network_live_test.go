package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

// TestLiveLaunchOnOwnNetwork: a user's network starts with the first guest that is to be on it, and
// no privilege is left. Its file says which addresses there are.
func TestLiveLaunchOnOwnNetwork(t *testing.T) {
	for program, pkg := range map[string]string{"pasta": "passt", "dnsmasq": "dnsmasq-base", "nft": "nftables"} {
		_, err := tool.Find(program, pkg)
		nstest.Require(t, program, err == nil, "apt install "+pkg)
	}
	nstest.OpenTun(t)
	h := newHost(t).withVMNet()
	env := []string{
		"HOME=" + h.own("home"), "XDG_RUNTIME_DIR=" + h.path("run"),
		"PATH=" + filepath.Dir(h.vmnet) + ":/usr/sbin:/usr/bin:/sbin:/bin",
	}
	vmnet := func(args ...string) result {
		cmd := h.command(h.vmnet, args...)
		cmd.Env = env
		return h.do(cmd)
	}
	launch := func(args ...string) result {
		cmd := h.command(h.program, args...)
		cmd.Env = env
		return h.do(cmd)
	}
	defer func() { h.ok(vmnet("network", "delete", "lab", "--force")) }()
	h.ok(vmnet("network", "create", "lab", "--nat", "--dhcp"), "network lab created: switch lab, ")
	h.ok(vmnet("switch", "stop", "lab"))
	nstest.Eventually(t, 30*time.Second, "the network ends", func() bool {
		return strings.Contains(vmnet("network", "list").stdout, "absent")
	})
	h.ok(launch("--vm", "P3", "--network", "lab", "--",
		"/bin/sh", "-c", ": $VMNET_JSON; grep Cap /proc/self/status; vmnet switch show lab"),
		"CapPrm:\t0000000000000000", "CapAmb:\t0000000000000000", "P3-net0", "gateway")
	h.ok(vmnet("network", "list"), "up")
	h.fails(launch("--vm", "P3", "--network", "lab", "--ip", "198.51.100.1", "--", "/bin/sh", "-c", ": $VMNET_JSON"), 1,
		": network lab: ip 198.51.100.1: want an address from ")
}
