package main

import (
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/bpfguard"
)

// guarded demands that the kernel checks all of a tap's frames, with that address.
func (h *host) guarded(name, ip string) {
	h.Helper()
	l, err := h.nl.Link(name)
	if err != nil {
		h.Fatal(err)
	}
	s, err := bpfguard.Read(h.nl, l)
	if err != nil || s.Config.Checks != portsec.All || portsec.FormatIP(s.Config.IPs[0]) != ip {
		h.Errorf("%s: %v, %v; want all checks with %s", name, s.Config, err, ip)
	}
}

// TestLivePortSecurityRequired: a user of whom the policy demands port security gets no NIC without
// it by any form, cannot weaken it, and gets one that the kernel checks, with either privilege.
func TestLivePortSecurityRequired(t *testing.T) {
	h := newHost(t).withVMNet()
	h.policy(`{users: ["*"], bridges: [br0], ips: [10.7.0.64/28],
  port-security: [mac, ip, arp], ethertypes: ["0x88f7"]}`)
	launch := func(args ...string) result {
		args = append([]string{"--vm", "P3", "--bridge", "br0"}, args...)
		return h.nobodys(append(args, "--vmm", "env", "--", "/bin/sh", "-c",
			"grep Cap /proc/self/status; tc filter show dev P3-net0 ingress")...)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "port security mac,ip,arp must be asked for"},
		{[]string{"--port-security", "mac,arp"}, "port security ip must be asked for"},
		{[]string{"--port-security", "all", "--ip", "10.7.0.1"}, "IP address 10.7.0.1 is not among"},
		{[]string{"--port-security", "all", "--ip", "10.7.0.0/24"}, "IP address 10.7.0.0/24 is not among"},
		{
			[]string{"--port-security", "all", "--ip", "10.7.0.65", "--allow-ethertype", "0x88b5"},
			"EtherType 0x88b5 is not among 0x88f7",
		},
	} {
		h.fails(launch(c.args...), exitFailure, c.want)
	}
	h.fails(launch("--port-security", "all"), exitUsage, "ip needs the NIC's own addresses")
	r := h.do(h.qemu("P1", "-netdev", "bridge,id=n0,br=br0,helper="+h.program))
	h.fails(r, exitFailure, "port security mac,ip,arp must be asked for", "QEMU's bridge helper")
	h.plainQEMU("N2")
	h.fails(h.attach("N2", "net0", "--bridge", "br0"), exitFailure, "must be asked for")
	if n := h.taps(); n != 0 {
		t.Errorf("%d taps are left", n)
	}
	all := []string{"--port-security", "all", "--ip", "10.7.0.65", "--allow-ethertype", "0x88f7"}
	h.ok(launch(append([]string{"--dry-run"}, all...)...), "port security: BPF_PROG_LOAD")
	h.ok(launch(all...), "CapPrm:\t0000000000000000", "vmnet_guard")
	h.gone("P3-net0")
	h.ok(h.attach("N2", "net0", append([]string{"--bridge", "br0"}, all...)...), "security:all")
	h.guarded("N2-net0", "10.7.0.65")
	h.asItShouldBe()

	h.reconfigure(0o755, fileCaps(cap.NET_ADMIN, cap.BPF, cap.PERFMON))
	h.ok(launch(all...), "CapPrm:\t0000000000000000", "vmnet_guard")
	h.ok(h.attach("N2", "net1", append([]string{"--bridge", "br0"}, all...)...), "security:all")
	h.guarded("N2-net1", "10.7.0.65")
	h.reconfigure(0o755, fileCaps(cap.NET_ADMIN))
	h.fails(launch(all...), exitFailure, "--port-security and --allow-in need CAP_BPF and CAP_PERFMON")
	h.fails(h.attach("N2", "net2", append([]string{"--bridge", "br0"}, all...)...), exitFailure,
		"setcap cap_net_admin,cap_bpf,cap_perfmon+ep")
	h.gone("N2-net2")
}
