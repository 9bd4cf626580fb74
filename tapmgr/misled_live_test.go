package tapmgr_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/vmm/qemu"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/lab"
)

// user is somebody who is not root.
const user = 54321

func TestLiveAForgedMacvtapIsNotOurs(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.forge("macvtap")
}

func TestLabAForgedIPVtapIsNotOurs(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	h.forge("ipvtap")
}

// forge has a user make, in a user namespace of his own, what looks like a NIC on the host's eth0.
func (h *host) forge(kind string) {
	h.Helper()
	script := fmt.Sprintf(`set -e
ip link add name eth0 index %d type veth peer name peer0
ip link add link eth0 name P9-net0 type %s
ip link set P9-net0 alias "vmnet vm=P9 nic=net0 type=%[2]s source=eth0 mac=52:54:00:00:00:09 model=virtio-net-pci queues=1"
exec 3</proc/self/ns/net 4<"$NODE"
echo made
exec sleep 60`, h.lower().Index, kind)
	node := filepath.Join(h.TempDir(), "tap9") // vmnet looks only at who has something like a queue
	if err := errors.Join(os.WriteFile(node, nil, 0o644), os.Chmod(filepath.Dir(node), 0o755),
		os.Chmod(filepath.Dir(filepath.Dir(node)), 0o755)); err != nil {
		h.Fatal(err)
	}
	cmd := exec.Command("unshare", "-Urn", "sh", "-c", script)
	cmd.Env = append(os.Environ(), "NODE="+node)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "made\n" {
		h.Fatalf("%q, %v: want it made", line, err)
	}
	if list, err := h.List(""); err != nil || len(list) != 0 {
		h.Errorf("list %+v, %v: want nothing", list, err)
	}
}

// held starts a process, called like a QEMU, of a user who holds the fds of a NIC.
func (h *host) held(uid uint32, vm string, files ...*os.File) int {
	h.Helper()
	cmd := h.command(order{Hold: true})
	cmd.Args = []string{"qemu-system-x86_64", "-name", "guest=" + vm}
	cmd.ExtraFiles = append(cmd.ExtraFiles, files...)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd.Process.Pid
}

// launch makes NICs; their fds end with the test at the latest.
func (h *host) launch(specs ...nic.Spec) *backend.Launch {
	h.Helper()
	l, err := h.tryLaunch(h.context(20*time.Second), specs...)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = l.Close() })
	return l
}

func macvtapSpec(vm, nicID string) nic.Spec {
	return nic.Spec{
		Target: nic.Target{VM: vm}, NIC: nicID, Vhost: nic.VhostOff,
		Lower: &nic.Lower{Kind: vtap.Macvtap, Device: "eth0"},
	}
}

// TestLiveAUserHasWhatItsProcessesHold counts a macvtap whose holder has closed the netns fd.
func TestLiveAUserHasWhatItsProcessesHold(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.Host().Owner = user
	vm := h.name("P3")
	lower, tap := macvtapSpec(vm, "net0"), macvtapSpec(vm, "net1")
	lower.Queues = 2
	tap.Lower, tap.Bridge = nil, "br0"
	l := h.launch(lower, tap)
	var queues []*os.File
	for _, n := range l.NICs {
		queues = append(queues, n.Files.Queues...)
	}
	h.held(user, vm, queues...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[int]int{user: 2, user + 1: 0} {
		if n, err := h.Host().Owned(uid); err != nil || n != want {
			t.Errorf("uid %d has %d, %v: want %d", uid, n, err, want)
		}
	}
}

// TestLiveOtherUsersProcessesAreLookedIntoWithTheRight: what is asked about all processes goes
// through LookInto. No ipvtap is made, so the test needs no kernel that has them.
func TestLiveOtherUsersProcessesAreLookedIntoWithTheRight(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.Host().LookInto = func(func() error) error { return errFault }
	if _, err := h.Host().Owned(user); !errors.Is(err, errFault) {
		t.Errorf("a count: %v", err)
	}
	spec := macvtapSpec(h.name("P3"), "net0")
	if _, err := h.tryLaunch(h.context(20*time.Second), spec); !errors.Is(err, errFault) {
		t.Errorf("a macvtap, whose name may be taken: %v", err)
	}
	looks := 0
	h.Host().LookInto = func(f func() error) error {
		if looks++; looks == 1 { // for its siblings; the next one is for its name
			return f()
		}
		return errFault
	}
	spec.Lower.Kind, spec.Lower.Addrs = vtap.IPVtap, []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")}
	if _, err := h.tryLaunch(h.context(20*time.Second), spec); !errors.Is(err, errFault) || looks != 2 {
		t.Errorf("an ipvtap, beside which there may be others: %v after %d looks", err, looks)
	}
	h.Host().LookInto = func(f func() error) error { return f() }
	if n, err := h.Host().Owned(user); err != nil || n != 0 {
		t.Errorf("a count: %d, %v", n, err)
	}
}

// TestLiveTwoMacvtapsOfOneName has two guests of one name with a NIC of one id each.
func TestLiveTwoMacvtapsOfOneName(t *testing.T) {
	h := newHost(t)
	h.wire()
	a := h.empty()
	b := &guest{testvm.StartT(t, testvm.Config{Name: a.name, Paused: true}), a.name}
	for i, g := range []*guest{a, b} {
		spec := g.lowerSpec("net0", nic.Lower{})
		spec.PID, spec.MAC = g.Pid(), []byte{0x52, 0x54, 0, 0, 0, byte(i)}
		h.attach(spec)
	}
	spec := tapmgr.DetachSpec{Target: nic.Target{VM: a.name}, NIC: "net0", Force: true}
	_, err := h.Detach(h.context(10*time.Second), spec)
	if !errors.Is(err, qemu.ErrAmbiguous) {
		t.Fatalf("without a pid: %v", err)
	}
	for _, want := range []string{
		fmt.Sprintf("process %d (uid 0)", a.Pid()),
		fmt.Sprintf("process %d (uid 0)", b.Pid()), "--pid",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %q in it", err, want)
		}
	}
	for _, g := range []*guest{b, a} {
		spec.PID = g.Pid()
		if res, err := h.Detach(h.context(10*time.Second), spec); err != nil || !res.Changed {
			t.Errorf("with the pid: %+v, %v", res, err)
		}
		list, err := h.List(a.name)
		if slices.ContainsFunc(list, func(n nic.NIC) bool {
			return n.PID == g.Pid() && n.State == nic.Up
		}) || err != nil {
			t.Errorf("after the detach from %d: %+v, %v", g.Pid(), list, err)
		}
		if g == b && !slices.ContainsFunc(list, func(n nic.NIC) bool { return n.PID == a.Pid() && n.State == nic.Up }) {
			t.Errorf("the other one's: %+v: want it untouched", list)
		}
	}
}

// TestLiveDetachAsksNoOtherUsersProcess has a user hold a NIC; only by its pid is that process
// asked.
func TestLiveDetachAsksNoOtherUsersProcess(t *testing.T) {
	h := newHost(t)
	vm := h.name("P3")
	spec := macvtapSpec(vm, "net0")
	spec.Lower, spec.Bridge = nil, "br0"
	l := h.launch(spec)
	pid := h.held(user, vm, l.NICs[0].Files.Queues...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	d := tapmgr.DetachSpec{Target: nic.Target{VM: vm}, NIC: "net0"}
	for _, d.Force = range []bool{false, true} {
		_, err := h.Detach(h.context(20*time.Second), d)
		if !errors.Is(err, qemu.ErrOtherUser) || !strings.Contains(err.Error(), fmt.Sprintf("--pid %d", pid)) {
			t.Errorf("force %v: %v", d.Force, err)
		}
	}
	if link, err := h.nl.Link(l.NICs[0].NIC.Interface); err != nil || !link.Up || link.Master == 0 {
		t.Errorf("%+v, %v: want it untouched", link, err)
	}
	d.PID, d.Force = pid, false
	if _, err := h.Detach(h.context(20*time.Second), d); !errors.Is(err, qemu.ErrNoMonitor) {
		t.Errorf("with its pid: %v", err)
	}
}
