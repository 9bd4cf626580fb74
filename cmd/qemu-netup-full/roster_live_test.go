package main

import (
	"net/netip"
	"testing"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/tapmgr/nic"
)

// TestLiveNetworkOfRoot: a user has a NIC of a network that root has made, as bridge.conf and
// policy.yaml allow, with an address that is free; its record names both.
func TestLiveNetworkOfRoot(t *testing.T) {
	h := newHost(t).withVMNet()
	h.config("bridge.conf", "allow br0\nallow lab\n")
	h.policy(`{users: ["*"], networks: [lab], ips: [10.66.0.16/28]}`, `{users: ["*"], bridges: [br0]}`)
	web, err := config.ParseMAC("52:54:00:00:66:01")
	if err == nil {
		err = config.Dir(h.path("networks.d")).Write(&config.Network{
			Name: "lab", Domain: "lab.internal", Subnet: netip.MustParsePrefix("10.66.0.0/24"),
			Hosts: []config.Host{{Name: "web", MAC: web, IP: netip.MustParseAddr("10.66.0.17")}},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	launch := func(args ...string) result {
		args = append([]string{"--vm", "N3"}, args...)
		return h.nobodys(append(args, "--", "/bin/sh", "-c", ": $VMNET_JSON; echo started")...)
	}
	h.fails(launch("--network", "lab"), exitFailure, "network lab: it is not applied (vmnet network apply lab)")
	makeBridge(t, h.ns, bridge.Config{Name: "lab"})
	h.fails(launch("--network", "lab"), exitFailure, "there is a device of that name, and it is not a network's")
	br, err := h.nl.Link("lab")
	if err == nil {
		err = h.nl.Set(br.Index, rtnl.Alias("vmnet network=lab"))
	}
	if err != nil {
		t.Fatal(err)
	}

	h.ok(launch("--network", "lab", "--ip", "10.66.0.20"), "started")
	h.fails(
		launch("--network", "lab", "--ip", "10.66.0.40"),
		exitFailure,
		"IP address 10.66.0.40 is not among 10.66.0.16/28",
	)
	h.fails(launch("--network", "lab", "--ip", "10.66.0.17"), exitFailure, "10.66.0.17 is host web's")
	h.fails(launch("--network", "lab", "--bridge", "br0"), exitUsage, "a NIC can have only one of them")
	h.fails(launch("--bridge", "lab"), exitFailure, "bridge lab is not among br0")
	h.fails(launch("--network", "lan"), exitFailure, `bridge "lan": no line of `)

	h.plainQEMU("N2")
	h.ok(h.attach("N2", "net0", "--network", "lab"), "tap N2-net0 on network lab")
	nics, err := h.List(t.Context(), "N2")
	if err != nil || len(nics) != 1 || nics[0].Network != "lab" || nics[0].Source != "lab" || nics[0].UID != nobody ||
		nics[0].State != nic.State(rtnl.Forwarding.String()) {
		t.Errorf("root sees %+v, %v", nics, err)
	}
	h.ok(h.nobodysVMNet("list"), "lab(network)")
	h.ok(h.nobodysVMNet("show", "N2"), "network:")
	h.ok(h.attach("N2", "net0", "--network", "lab"), "unchanged")
}
