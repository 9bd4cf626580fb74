package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// ownHost is a host on which nobody has networks.
type ownHost struct {
	*host
	home string
	env  []string
}

func newOwnHost(t *testing.T) *ownHost {
	t.Helper()
	for program, pkg := range map[string]string{"pasta": "passt", "dnsmasq": "dnsmasq-base", "nft": "nftables"} {
		_, err := tool.Find(program, pkg)
		nstest.Require(t, program, err == nil, "apt install "+pkg)
	}
	nstest.OpenTun(t)
	h := &ownHost{host: newHost(t).withVMNet()}
	h.home = h.own("home")
	h.env = []string{
		"HOME=" + h.home, "XDG_RUNTIME_DIR=" + h.path("run"),
		"PATH=" + filepath.Dir(h.host.vmnet) + ":/usr/sbin:/usr/bin:/sbin:/bin",
	}
	t.Cleanup(func() { h.ok(h.vmnet("network", "delete", "lab", "--force")) })
	return h
}

func (h *ownHost) vmnet(args ...string) result { return h.runs(h.host.vmnet, args...) }

func (h *ownHost) launch(args ...string) result { return h.runs(h.program, args...) }

func (h *ownHost) runs(program string, args ...string) result {
	h.Helper()
	cmd := h.command(program, args...)
	cmd.Env = h.env
	return h.do(cmd)
}

// TestLiveLaunchOnOwnNetwork: a user's network starts with the first guest that is to be on it, and
// no privilege is left. Its file says which addresses there are.
func TestLiveLaunchOnOwnNetwork(t *testing.T) {
	h := newOwnHost(t)
	h.ok(h.vmnet("network", "create", "lab", "--nat", "--dhcp"), "network lab created: switch lab, ")
	h.ok(h.vmnet("switch", "stop", "lab"))
	nstest.Eventually(t, 30*time.Second, "the network ends", func() bool {
		return strings.Contains(h.vmnet("network", "list").stdout, "absent")
	})
	h.ok(h.launch("--vm", "P3", "--network", "lab", "--",
		"/bin/sh", "-c", ": $VMNET_JSON; grep Cap /proc/self/status; vmnet switch show lab"),
		"CapPrm:\t0000000000000000", "CapAmb:\t0000000000000000", "P3-net0", "gateway")
	h.ok(h.vmnet("network", "list"), "up")
	h.fails(h.launch("--vm", "P3", "--network", "lab", "--ip", "198.51.100.1", "--",
		"/bin/sh", "-c", ": $VMNET_JSON"), 1,
		": network lab: ip 198.51.100.1: want an address from ")
}

// boots starts a guest on the network lab with a real boot, so that it comes from no saved state.
func (h *ownHost) boots(c testvm.Config, options ...string) *guest {
	h.Helper()
	c.Cold, c.BootTimeout = true, 5*time.Minute
	edit := "export HOME=" + h.home
	return h.host.boot(c, edit, append([]string{"--network", "lab"}, options...)...)
}

// nic returns the only NIC of a guest, as nobody sees it.
func (h *ownHost) nic(vm string) (n nic.NIC) {
	h.Helper()
	var all []nic.NIC
	r := h.vmnet("list", "--vm", vm, "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || len(all) != 1 {
		h.Fatalf("%s has %s%s, %v", vm, r.stdout, r.stderr, err)
	}
	return all[0]
}

// leases has a guest ask for an address, and then for the network's names.
func (h *ownHost) leases(g *guest) {
	h.Helper()
	const script = "until ip link set eth0 up 2>/dev/null; do sleep 0.1; done; " +
		"udhcpc -f -n -q -i eth0 -t 20 -T 1"
	if out, err := g.Guest.Exec(h.context(time.Minute), "sh", "-c", script); err != nil {
		h.Fatalf("%s: %v: %s", g.name, err, out)
	}
}

// finds demands that a guest reaches another one by its name.
func (h *ownHost) finds(g *guest, name string) {
	h.Helper()
	h.await(g.name+" to reach "+name, func() error {
		out, err := g.Guest.Exec(h.context(20*time.Second), "ping", "-c", "1", "-W", "2", name)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
}

func (h *ownHost) sockets() []string {
	left, _ := filepath.Glob(h.path("run/vmnet/vhost-user/*"))
	return left
}

// asks runs a command of QEMU's monitor.
func (h *ownHost) asks(g *guest, command string, args any) error {
	h.Helper()
	ctx := h.context(20 * time.Second)
	c, err := qmp.Dial(ctx, g.QMP)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Execute(ctx, command, args, nil)
}

// TestLiveOwnNetworkSharesMemory: a guest that is started on a network of its user shares its
// memory with that network's switch; the verbs know it, and nothing is left of a killed one.
func TestLiveOwnNetworkSharesMemory(t *testing.T) {
	testvm.Require(t)
	h := newOwnHost(t)
	h.ok(h.vmnet("network", "create", "lab", "--dhcp"))
	a := h.boots(testvm.Config{Name: "Pa", AllowReset: true})
	b := h.boots(testvm.Config{Name: "Pb"}, "--via", "socket")
	for name, want := range map[string]string{"Pa": nic.TypeVhostUser, "Pb": nic.TypeSocket} {
		if n := h.nic(name); n.Type != want || n.State != "forwarding" || !n.Switch || n.Source != "lab" {
			t.Errorf("%s: %+v, want %s", name, n, want)
		}
	}
	h.leases(a)
	h.leases(b)
	h.finds(a, "pb")
	h.finds(b, "pa")
	h.ok(h.vmnet("check"), "2 NICs compared, no difference")
	h.ok(h.vmnet("show", "Pa"), "vhost-user")
	h.ok(h.vmnet("network", "show", "lab"), "Pa/net0", "Pb/net0")

	if err := h.asks(a, "system_reset", nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	if _, err := a.Guest.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	h.leases(a)
	h.finds(a, "pb")

	h.fails(h.vmnet("network", "delete", "lab"), 1, "guests are on it: ", "Pa-net0")
	h.ok(h.vmnet("network", "delete", "lab", "--force"))
	if err := h.asks(a, "query-status", nil); err != nil {
		t.Errorf("QEMU without its network: %v", err)
	}
	h.ok(h.vmnet("network", "create", "lab", "--dhcp"))
	h.ok(h.vmnet("reconcile"))
	h.leases(a)
	if n := h.nic("Pa"); n.State != "forwarding" {
		t.Errorf("on the new network: %+v", n)
	}

	if left := h.sockets(); len(left) != 1 {
		t.Errorf("sockets %q", left)
	}
	for _, g := range []*guest{a, b} {
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	h.nothingOnLab()
	h.ok(h.vmnet("reconcile"), "removed") // the file of a socket to which a second switch has connected
	if left := h.sockets(); len(left) > 0 {
		t.Errorf("sockets %q", left)
	}
}

func (h *ownHost) nothingOnLab() {
	h.Helper()
	h.await("the ports of killed guests to go", func() error {
		if r := h.vmnet("switch", "show", "lab"); strings.Contains(r.stdout, "net0") {
			return errors.New(r.stdout)
		}
		return nil
	})
}

// TestLiveOwnNetworkKilled: nothing is left of a QEMU that is killed, and vmnet need not run.
func TestLiveOwnNetworkKilled(t *testing.T) {
	testvm.Require(t)
	h := newOwnHost(t)
	h.ok(h.vmnet("network", "create", "lab", "--dhcp"))
	cmd := h.command(h.program, "--network", "lab", "--", qemuProgram, "-name", "P3", "-S", "-m", "32",
		"-nodefaults", "-display", "none", "-accel", "tcg")
	cmd.Env = h.env
	task := h.start(cmd)
	h.await("QEMU to listen, and the switch to serve it", func() error {
		if r := h.vmnet("switch", "show", "lab"); !strings.Contains(r.stdout, "P3-net0") || len(h.sockets()) != 1 {
			return fmt.Errorf("%s, sockets %q", r.stdout, h.sockets())
		}
		return nil
	})
	task.kill()
	h.nothingOnLab()
	h.await("the socket's file to go", func() error {
		if left := h.sockets(); len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
}

// TestLiveOwnNetworkFallsBack: a guest whose memory cannot be shared, or had better not be, is on a
// socket as before, and a note says why.
func TestLiveOwnNetworkFallsBack(t *testing.T) {
	testvm.Require(t)
	h := newOwnHost(t)
	h.ok(h.vmnet("network", "create", "lab", "--dhcp"))
	const shared, socket = "-netdev vhost-user,", "-netdev socket,"
	for _, c := range []struct{ options, line, netdev, note string }{
		{"", "qemu-system-x86_64 -m 64", shared, "its switch has the guest's memory (--via socket"},
		{"--via socket", "qemu-system-x86_64 -m 64", socket, ""},
		{"--via vhost-user", "qemu-system-x86_64 -m 64", shared, ""},
		{"", "nice -n 1 qemu-system-x86_64 {vmnet}", shared, "its switch has"},
		{"--model e1000", "qemu-system-x86_64 -m 64", socket, ""},
		{"", "qemu-system-x86_64 -mem-path /dev/shm", socket, "-mem-path makes memory that is private"},
		{
			"", "qemu-system-x86_64 -object memory-backend-ram,id=r,size=64M -M pc,memory-backend=r", socket,
			"which a switch cannot map",
		},
		{
			"", "qemu-system-x86_64 -M memory-backend=r -object memory-backend-memfd,id=r,size=64M", shared,
			"its switch has",
		},
		{"", "qemu-system-x86_64 -numa node,mem=128", socket, "private"},
		{"", "qemu-system-x86_64 -m 64,maxmem=1G,slots=2", socket, "memory that is added later"},
		{"", "qemu-system-x86_64 -incoming defer", socket, "with -incoming"},
		{"", "qemu-system-x86_64 --loadvm s", socket, "with -loadvm"},
		{"", "qemu-system-x86_64 -M q35,confidential-guest-support=x", socket, "is encrypted"},
		{"", "qemu-system-arm -M mps2-an385,x-place=y", socket, "it is not known whether a machine"},
		{"--device-opt iommu_platform=on", "qemu-system-x86_64", socket, "--device-opt iommu_platform"},
		{"", "setpriv --clear-groups qemu-system-x86_64", socket, "QEMU behind setpriv"},
		{"", "sh -c qemu-system-x86_64\t$@ sh {vmnet}", socket, "what starts QEMU is not known"},
		{"", "/bin/sh -c :$VMNET_JSON", "", "what starts QEMU is not known"},
	} {
		args := append(strings.Fields("--dry-run --network lab --vm P3 --place pci "+c.options), "--")
		r := h.launch(append(args, strings.Fields(c.line)...)...)
		h.ok(r, c.netdev)
		if c.note == "" && strings.Contains(r.stderr, "network lab") || !strings.Contains(r.stderr, c.note) {
			t.Errorf("%s -- %s: %s, want %q", c.options, c.line, r.stderr, c.note)
		}
	}
	h.fails(h.launch("--vm", "P3", "--network", "nolab", "--via", "socket", "--", "qemu-system-x86_64"), 2,
		"the caller has no network nolab")
	h.fails(h.launch("--vm", "P3", "--network", "lab", "--via", "vhost-user", "--",
		"qemu-system-x86_64", "-mem-path", "/"), 2, "-mem-path makes memory that is private")

	g := h.boots(testvm.Config{Name: "Pm", ExtraArgs: []string{
		"-object", "memory-backend-ram,id=r,size=128M", "-machine", "memory-backend=r",
	}})
	if n := h.nic(g.name); n.Type != nic.TypeSocket || n.State != "forwarding" {
		t.Errorf("%+v", n)
	}
	h.leases(g)

	// The same guest gets a second NIC while it runs: on a socket, and not by its private memory.
	attach := []string{"attach", "--vm", g.name, "--network", "lab", "--nic", "net1"}
	h.fails(h.vmnet(append(attach, "--via", "vhost-user")...), 1, "is not shared")
	h.ok(h.vmnet(attach...), "socket "+g.name)
}

// TestLiveOwnNetworkWithoutRoom: what keeps a switch from the guest's memory only when the NIC is
// made does not keep the guest from its network.
func TestLiveOwnNetworkWithoutRoom(t *testing.T) {
	h := newOwnHost(t)
	h.ok(h.vmnet("network", "create", "lab", "--dhcp"))
	if err := os.WriteFile(h.path("run/vmnet/vhost-user"), nil, 0o600); err != nil { // no directory
		t.Fatal(err)
	}
	r := h.launch("--network", "lab", "--", "qemu-system-x86_64", "-name", "P3", "-version")
	h.ok(r, "QEMU emulator")
	if !strings.Contains(r.stderr, "note: network lab: by a socket, which is slower than vhost-user: ") {
		t.Error(r.stderr)
	}
}
