package tapmgr_test

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"vmnet/bridge"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveSetOfLaunched changes NICs that a guest was started with, as qemu-netup makes them.
func TestLiveSetOfLaunched(t *testing.T) {
	testvm.Require(t)
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	h.wire()
	lower := nic.Lower{Kind: vtap.Macvtap, Device: "eth0", Mode: "vepa"}
	g, l := h.launched(testvm.Config{Paused: true}, (&guest{}).spec("net0"),
		nic.Spec{NIC: "net1", Lower: &lower, Vhost: nic.VhostOff})
	tap := l.NICs[0].NIC.Interface
	h.try(g, trial{
		there: func(s *nic.Spec) { s.Bridge, s.Port.Isolated, s.LinkDown = "br1", true, true },
		back:  func(s *nic.Spec) { s.Bridge, s.Port.Isolated, s.LinkDown = "br0", false, false },
		seat:  func() string { return h.seat(tap) },
		then:  "br1, isolated, no carrier", before: "br0",
	})
	res, err := h.setNIC(g, "net1", func(s *nic.Spec) { s.Lower.Mode = "bridge" })
	if err != nil || res.NIC.Mode != "bridge" {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestLiveSetRouted: of a routed NIC only its link changes.
func TestLiveSetRouted(t *testing.T) {
	h := newHost(t)
	h.quietLAN()
	g := h.empty()
	spec := g.spec("net0")
	spec.Bridge, spec.Routed, spec.IP = "", "eth0", []netip.Addr{netip.MustParseAddr(routedAddr)}
	n := h.attach(spec)
	for _, down := range []bool{true, false} {
		if _, err := h.set(g, func(s *nic.Spec) { s.LinkDown = down }); err != nil {
			t.Fatal(err)
		}
		seat := "none"
		if down {
			seat = "none, no carrier"
		}
		h.wants("routed", h.seat(n.Interface), seat)
	}
	for want, edit := range map[string]func(*nic.Spec){
		"a routed NIC has no port": func(s *nic.Spec) { s.Routed, s.IP, s.Bridge = "", nil, "br0" },
		"by which packets find it": func(s *nic.Spec) { s.IP = []netip.Addr{netip.MustParseAddr(routedAddr2)} },
	} {
		if _, err := h.set(g, edit); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestLiveSetWithoutPrivilege: the error says who may change the NIC, before anything changes.
func TestLiveSetWithoutPrivilege(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	g := h.empty()
	n := h.attach(g.spec("net0"))
	h.UseHelper("/nonexistent")
	_, err := h.set(g, func(s *nic.Spec) { s.Bridge = "br1" })
	if err == nil || !strings.Contains(err.Error(), "takes root") {
		t.Errorf("with a helper: %v", err)
	}
	h.UseHelper("")
	wanted := h.changed(g, func(s *nic.Spec) { s.Bridge = "br1" })
	wanted.PID = g.Pid()
	cmd := h.command(order{Spec: wanted, Set: true})
	const capDACOverride, capSysPtrace, capSysAdmin = 1, 19, 21
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.SysProcAttr.AmbientCaps = []uintptr{capDACOverride, capSysPtrace, capSysAdmin}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "CAP_NET_ADMIN") {
		t.Errorf("without CAP_NET_ADMIN: %v, %s", err, out)
	}
	h.wants("refused", h.seat(n.Interface), "br0")
}
