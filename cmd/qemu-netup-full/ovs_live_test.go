package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovstest"
	"vmnet/tapmgr/nic"
)

// ovsHost is a host with a bridge of Open vSwitch that forwards in user space. Only root reaches
// its database.
type ovsHost struct {
	*host
	*ovstest.OVS
}

func newOVSHost(t *testing.T) *ovsHost {
	t.Helper()
	h := &ovsHost{host: newHost(t).withVMNet()}
	h.OVS = ovstest.New(t, h.ns)
	h.StartSwitch()
	h.AddBridge("br-int")
	h.UseDatabases(h.Socket())
	h.config("bridge.conf", "allow br0\nallow br-int\n")
	h.config("policy.yaml", fmt.Sprintf(`rules:
- {users: [nobody], bridges: [br-int], iface-ids: ["g*"], ovsdb: [%s], vlans: [7], nics: 2}
profiles:
  int: {bridge: br-int, ovsdb: %[1]s, vlan: 7}
`, h.Socket()))
	return h
}

// ports are those of br-int, without its own.
func (h *ovsHost) ports() []string { return strings.Fields(h.Vsctl("list-ports", "br-int")) }

// row waits for the row of a port, and demands these texts of it.
func (h *ovsHost) row(name string, wants ...string) {
	h.Helper()
	h.await("the port of "+name, func() error {
		if !slices.Contains(h.ports(), name) {
			return errors.New("it is not there")
		}
		return nil
	})
	row := h.Vsctl("get", "Port", name, "tag", "external_ids", "--", "get", "Interface", name, "external_ids", "ofport")
	for _, want := range wants {
		if !strings.Contains(row, want) {
			h.Errorf("the row of %s lacks %s: %s", name, want, row)
		}
	}
}

// rowGoes demands that the tap has gone, and has reconcile remove its row.
func (h *ovsHost) rowGoes(name string) {
	h.Helper()
	h.gone(name)
	if _, err := h.Reconcile(h.context(20*time.Second), false); err != nil {
		h.Error(err)
	}
	if left := h.Vsctl("--bare", "--columns=name", "find", "Interface", "type!=internal"); left != "" && left != "up0" {
		h.Errorf("interfaces %q are left", left)
	}
}

// TestLiveOVSLaunch: a user's guest starts on a bridge of Open vSwitch, and its row goes when it is
// killed.
func TestLiveOVSLaunch(t *testing.T) {
	h := newOVSHost(t)
	launch := func(args ...string) []string {
		return slices.Concat([]string{"--bridge", "br-int"}, args,
			[]string{
				"--", qemuProgram, "-name", "guest=N2", "-S", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "32",
				"-display", "none",
			})
	}
	db := []string{"--ovsdb", h.Socket()}
	h.fails(h.nobodys(launch("--ovsdb", h.Dir+"/other")...), exitFailure, "is not among "+h.Socket(), "to ovsdb")
	h.fails(h.nobodys(launch("--iface-id", "x1")...), exitFailure, "iface-id x1 is not among g*")
	h.fails(h.nobodys(launch("--vlan", "8", "--ovsdb", h.Socket())...), exitFailure, "VLAN 8 is not among 7")
	h.fails(h.nobodys(launch(append(db, "--rate-up", "1M")...)...), exitUsage, "would have no effect")
	guest := h.start(h.command(h.program, launch(append(db, "--iface-id", "g1", "--vlan", "7")...)...))
	n := h.nicOf("N2")
	if n.UID != nobody || n.Type != nic.TypeOVS || n.Source != "br-int" || n.IfaceID != "g1" || n.Port != "vlan:7" {
		t.Errorf("listed as %+v", n)
	}
	h.row(n.Interface, "7\n", "iface-id=g1", "vm=N2 nic=net0", "attached-mac=")
	h.asItShouldBe()
	guest.kill()
	h.rowGoes(n.Interface)

	// With no more than CAP_NET_ADMIN the program cannot reach the database.
	h.reconfigure(0o755, fileCaps(cap.NET_ADMIN))
	h.fails(h.nobodys(launch(db...)...), exitFailure, "permission denied", "installed setuid root")
	if len(h.ports()) != 0 || h.taps() != 2 { // br-int and ovs-netdev
		t.Errorf("ports %q, %d taps are left", h.ports(), h.taps())
	}
}

// TestLiveOVSHelperForm: QEMU calls the program instead of its own helper.
func TestLiveOVSHelperForm(t *testing.T) {
	h := newOVSHost(t)
	h.fails(h.do(h.qemu("P1", "-netdev", "bridge,id=n0,br=br-int,helper="+h.program)), 1,
		"nobody listens on /run/openvswitch/db.sock")
	cmd := h.qemu("P1", "-netdev", "tap,id=n0,helper="+h.program+" --profile int",
		"-device", "virtio-net-pci,netdev=n0")
	for range 2 { // and a new tap of the same name passes frames by a new row
		guest := h.start(h.command(cmd.Path, cmd.Args[1:]...))
		n := h.nicOf("P1")
		if n.UID != nobody || n.Type != nic.TypeOVS || n.Source != "br-int" || n.Port != "vlan:7" ||
			n.State != "forwarding" {
			t.Errorf("listed as %+v", n)
		}
		h.row(n.Interface, "7\n", fmt.Sprintf("uid=%d ", nobody))
		if l, err := h.nl.Link(n.Interface); err != nil || l.Tun.VnetHdr || !l.Up {
			t.Errorf("%+v, %v", l, err)
		}
		h.Vsctl("del-port", n.Interface)
		if _, err := h.Reconcile(h.context(20*time.Second), false); err != nil {
			t.Error(err)
		}
		h.row(n.Interface, fmt.Sprintf("uid=%d ", nobody)) // put back
		guest.kill()
		h.gone(n.Interface)
		if got := h.ports(); !slices.Equal(got, []string{n.Interface}) {
			t.Fatalf("ports %q: this test is about a row that is left", got)
		}
	}
	actions, err := h.Reconcile(h.context(20*time.Second), false)
	if err != nil || len(actions) != 1 || !strings.Contains(actions[0].Action, "its device has gone") {
		t.Errorf("reconcile: %+v, %v", actions, err)
	}
	if got := h.ports(); len(got) != 0 {
		t.Errorf("ports %q are left", got)
	}
}

// TestLiveOVSAttach: a user's attach has the program make the tap and its port.
func TestLiveOVSAttach(t *testing.T) {
	h := newOVSHost(t)
	guest := h.plainQEMU("N2")
	h.fails(h.attach("N2", "net0", "--bridge", "br-int", "--ovsdb", h.Dir+"/other"), exitFailure,
		"is not among "+h.Socket())
	args := []string{"--bridge", "br-int", "--ovsdb", h.Socket(), "--iface-id", "g1"}
	h.ok(h.attach("N2", "net0", args...), "N2-net0 on br-int")
	h.row("N2-net0", "iface-id=g1", "vm=N2 nic=net0")
	h.asItShouldBe()
	h.ok(h.attach("N2", "net0", args...), "unchanged")
	guest.kill()
	h.gone("N2-net0")
	if got := h.ports(); !slices.Equal(got, []string{"N2-net0"}) {
		t.Fatalf("ports %q: this test is about a row that is left", got)
	}
	guest = h.plainQEMU("N2")
	h.ok(h.attach("N2", "net0", args...), "N2-net0 on br-int") // over it
	h.row("N2-net0", "iface-id=g1")
	guest.kill()
	h.rowGoes("N2-net0")
}

// TestLiveOVSWait: a user's attach, and a launch, wait for the flows of OVN, of which only root may
// ask.
func TestLiveOVSWait(t *testing.T) {
	h := newOVSHost(t)
	v := ovstest.NewOVN(t)
	h.ip(h.ns, "link", "add", "up0", "up", "type", "veth", "peer", "name", "up1")
	v.StartChassis(h.OVS, "hv1", "up0", "192.0.2.1")
	v.Nbctl("ls-add", "lan")
	waits := func(vm string) {
		h.Helper()
		h.await(vm+" has no flows yet", func() error {
			if n := h.nicOf(vm); n.State != nic.NoFlows {
				return fmt.Errorf("%+v", n)
			}
			return nil
		})
	}
	guest := h.plainQEMU("N2")
	attach := []string{"--bridge", "br-int", "--ovsdb", h.Socket(), "--iface-id", "g1", "--wait"}
	ended := make(chan result, 1)
	go func() { ended <- h.attach("N2", "net0", attach...) }()
	waits("N2")
	h.await("the helper waits", func() error { return h.runs(h.program, "--await=N2-net0") })
	select {
	case r := <-ended:
		t.Fatalf("attach does not wait: %+v", r)
	default:
	}
	v.Nbctl("lsp-add", "lan", "g1")
	h.ok(<-ended, "N2-net0 on br-int")
	h.ok(h.attach("N2", "net0", attach...), "unchanged")

	const foreign = "is no NIC of user 65534"
	h.fails(h.nobodys("--await=br-int"), exitFailure, foreign)
	h.fails(h.nobodys("--await=N3-net0"), exitFailure, foreign)
	h.fails(h.nobodys("--await="), exitUsage, "for vmnet attach only")
	l, err := h.nl.Link("N2-net0")
	if err == nil { // as if root had made it
		err = h.nl.Set(l.Index, rtnl.Alias(strings.Replace(l.Alias, " uid=65534", "", 1)))
	}
	if err != nil {
		t.Fatal(err)
	}
	h.fails(h.nobodys("--await=N2-net0"), exitFailure, foreign)
	guest.kill()
	h.rowGoes("N2-net0")

	launch := []string{
		"--wait", "--bridge", "br-int", "--ovsdb", h.Socket(), "--iface-id", "g2",
		"--", qemuProgram, "-name", "guest=N2", "-S", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "32",
		"-display", "none",
	}
	two := slices.Concat(launch[:7], []string{
		"--next-nic", "--bridge", "br-int", "--ovsdb", h.Socket(), "--iface-id", "g3",
	}, launch[7:])
	go func() { ended <- h.nobodys(two...) }()
	waits("N2")
	h.row("N2-net1", "iface-id=g3")
	h.Vsctl("del-port", "N2-net0")
	h.fails(<-ended, exitFailure, "wait for OVN to install the flows of N2-net0, iface-id g2")
	h.gone("N2-net1")
	if ports := h.ports(); len(ports) != 0 {
		t.Errorf("a launch that has given up leaves ports %q", ports)
	}

	guest = h.start(h.command(h.program, launch...))
	waits("N2")
	if err := h.runs(qemuProgram, "guest=N2"); err == nil || guest.hasEnded() {
		t.Error("QEMU runs before the flows are there")
	}
	v.Nbctl("lsp-add", "lan", "g2")
	h.await("QEMU runs", func() error { return h.runs(qemuProgram, "guest=N2") })
	if n := h.nicOf("N2"); n.State != "forwarding" {
		t.Errorf("QEMU runs with %+v", n)
	}
	guest.kill()
	h.rowGoes("N2-net0")
}

// runs returns an error unless a program runs with an argument.
func (h *ovsHost) runs(program, arg string) error {
	all, err := procfd.PIDs()
	if err != nil {
		return err
	}
	for _, pid := range all {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if filepath.Base(exe) == filepath.Base(program) && slices.Contains(strings.Split(string(line), "\x00"), arg) {
			return nil
		}
	}
	return fmt.Errorf("%s with %s does not run", program, arg)
}
