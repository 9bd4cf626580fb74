package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/internal/kernel/bridges"
	"vmnet/testvm"
	"vmnet/testvm/lab"
	"vmnet/vhost"
)

// TestLabVhost has one guest for all: it takes long to boot in the lab host.
func TestLabVhost(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	if out, err := exec.Command("modprobe", "vhost_net").CombinedOutput(); err != nil {
		t.Fatalf("modprobe vhost_net: %v: %s", err, out)
	}
	launch := []string{"--vm", "Plab", "--bridge", "br0", "--queues", "2", "--vhost"}
	may := func(mode os.FileMode) {
		if err := os.Chmod(vhost.Device, mode); err != nil {
			t.Fatal(err)
		}
	}
	may(0o600)
	r := h.nobodys(append(launch, "on", "--vmm", "env", "--", "/bin/true")...)
	h.fails(r, exitFailure, "permission denied")
	if !strings.Contains(r.stderr, "group") {
		t.Errorf("no cure: %s", r.stderr)
	}
	r = h.nobodys(append(launch, "auto", "--", "/bin/sh", "-c", "echo $VMNET_JSON")...)
	h.ok(r, `"vhosts":[]`)
	if strings.Count(r.stderr, "note: vhost-net is not used: ") != 1 {
		t.Errorf("no note: %s", r.stderr)
	}

	may(0o666)
	h.ok(h.nobodys(append(launch, "auto", "--", "/bin/sh", "-c", "echo $VMNET_ARGS")...), ",vhostfds=")
	g := h.boot(testvm.Config{Name: "Plab"}, ":", append(launch, "on")...)
	h.vhosts(g)
}

// vhosts demands that the kernel moves the guest's frames, and what killing it leaves.
func (h *host) vhosts(g *guest) {
	h.Helper()
	nic := h.one(g)
	h.reach(g, nic, "10.7.0.2")
	details, err := h.Show(h.context(20*time.Second), g.name)
	if err != nil || len(details) != 1 || len(details[0].VhostFDs) != 2 || nic.Vhost != "on" || nic.Queues != 2 {
		h.Errorf("show %+v, %v: want 2 vhost fds and 2 queues", details, err)
	}
	if thread := fmt.Sprintf("vhost-%d", g.Pid()); !slices.Contains(threads(), thread) {
		h.Errorf("there is no kernel thread %s", thread)
	}
	h.hasNothing(g, 2, 0)
	h.killed(g, nic)
}

// threads lists the names of all processes and kernel threads.
func threads() (names []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range files {
		if name, err := os.ReadFile(f); err == nil {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}

func TestLabVLAN(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	makeBridge(t, h.ns, bridge.Config{Name: "br2", VLANFiltering: true})
	h.config("bridge.conf", "allow br2\n")
	h.policy("{users: [65534], bridges: [br2], vlans: [20]}")
	launch := []string{"--vm", "P4", "--bridge", "br2", "--vhost", "off", "--vlan"}
	h.fails(h.nobodys(append(launch, "21", "--vmm", "env", "--", "/bin/true")...), exitFailure,
		"VLAN 21 is not among 20")
	task := h.start(h.command(h.program, append(launch, "20", "--vmm", "env", "--", "/bin/sleep", "1000")...))
	h.await("the port", func() error {
		nics, err := h.List(t.Context(), "P4")
		if err == nil && (len(nics) != 1 || nics[0].Port != "vlan:20" || nics[0].State != "forwarding") {
			err = fmt.Errorf("listed %+v", nics)
		}
		return err
	})
	h.asItShouldBe()
	br, err := h.nl.Link("br2")
	if err != nil {
		t.Fatal(err)
	}
	port, err := h.nl.Link("P4-net0")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := bridges.ReadPort(h.nl, br, port); err != nil || got.VLAN != 20 {
		t.Errorf("the port is %+v, %v", got, err)
	}
	task.kill()
	h.gone("P4-net0")
}
