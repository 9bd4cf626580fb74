package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	ofguest "vmnet/internal/guest"
	"vmnet/tapmgr/nic"
)

// TestLivePrepared starts a QEMU that waits for its guest: its NICs are down. Only root commits or
// aborts them.
func TestLivePrepared(t *testing.T) {
	h := newHost(t).withVMNet()
	h.policy("{users: [65534], bridges: [br0]}")
	qemu := []string{
		"--", qemuProgram, "-name", "guest=M1", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "32",
		"-display", "none", "-incoming", "defer",
	}
	h.fails(h.nobodys(append([]string{"--prepared", "--bridge", "br0"}, qemu...)...), exitUsage,
		"a prepared NIC needs the address that the guest has where it comes from: --mac")
	h.start(h.command(h.program, append([]string{
		"--prepared", "--qmp", h.path("run/M1.qmp"), "--vhost", "off", "--bridge", "br0", "--mac", "52:54:00:00:00:08",
		"--next-nic", "--bridge", "br0", "--mac", "52:54:00:00:00:09",
	}, qemu...)...))
	h.await("QEMU's monitor", func() error { return listens(h.path("run/M1.qmp")) })
	all, err := h.List(h.context(20*time.Second), "M1")
	if err != nil || len(all) != 2 {
		t.Fatalf("list %+v, %v", all, err)
	}
	for _, n := range all {
		if br, l := h.port(n.Interface); n.State != nic.Prepared || br != "br0" || l.Up {
			t.Errorf("%+v on %s, %+v", n, br, l)
		}
	}
	h.asItShouldBe()
	target := nic.Target{VM: "M1", PID: all[0].PID}
	if _, err := h.Commit(h.context(20*time.Second), target, "", false); !errors.Is(err, ofguest.ErrNotArrived) {
		t.Errorf("commit: %v", err)
	}
	h.fails(h.nobodysVMNet("abort", "--vm", "M1"), exitFailure, "takes root")
	h.fails(h.nobodysVMNet("prepare", "--vm", "M1", "--nic", "net7", "--bridge", "br0", "--mac", "52:54:00:00:00:07"),
		exitFailure, "to prepare a NIC takes root, as the commit does")
	removed, _, err := h.Abort(h.context(20*time.Second), target, "")
	if err != nil || len(removed) != 2 {
		t.Errorf("abort: %+v, %v", removed, err)
	}
	for _, n := range all {
		h.gone(n.Interface)
	}
}

// TestLiveOwnNetworkPrepared starts a QEMU that waits for its guest on a network of its user: by
// shared memory or a socket, its user prepares, aborts and commits its NICs.
func TestLiveOwnNetworkPrepared(t *testing.T) {
	h := newOwnHost(t)
	h.ok(h.vmnet("network", "create", "lab"))
	cmd := h.command(h.program, "--prepared", "--qmp", h.path("run/M2.qmp"), "--network", "lab",
		"--via", "vhost-user", "--mac", "52:54:00:00:00:08", "--", qemuProgram, "-name", "guest=M2", "-nodefaults",
		"-machine", "pc,accel=tcg", "-m", "32", "-display", "none", "-incoming", "defer")
	cmd.Env = h.env
	h.start(cmd)
	h.await("QEMU's monitor", func() error { return listens(h.path("run/M2.qmp")) })
	h.ok(h.vmnet("prepare", "--vm", "M2", "--nic", "net1", "--network", "lab", "--via", "socket", "--mac",
		"52:54:00:00:00:09"), "down until vmnet commit")
	r := h.vmnet("list", "--vm", "M2", "-o", "json")
	if n := strings.Count(r.stdout, `"state": "prepared"`); n != 2 {
		t.Errorf("%d NICs are prepared: %s", n, r.stdout)
	}
	h.ok(h.vmnet("switch", "show", "lab"), "down")
	h.ok(h.vmnet("check"))
	h.fails(h.vmnet("commit", "--vm", "M2"), exitFailure, "has not arrived")
	h.ok(h.vmnet("abort", "--vm", "M2"), "M2/net0", "M2/net1")
	h.nothingOnLab()
	if left := h.sockets(); len(left) > 0 {
		t.Errorf("sockets are left: %q", left)
	}
}
