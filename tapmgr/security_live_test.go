package tapmgr_test

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// secure has a NIC as the named frames of package portsectest want it.
func secure(spec nic.Spec) nic.Spec {
	spec.MAC, spec.IP = portsectest.MAC, []netip.Addr{portsectest.IP4, portsectest.IP6}
	spec.Security.Checks = portsec.All
	return spec
}

// secured is a change of a NIC that moves to br0 and is checked from then on; unsecured is the
// change back.
func secured(s *nic.Spec)   { *s = secure(*s); s.Bridge = "br0" }
func unsecured(s *nic.Spec) { s.Bridge, s.Security, s.IP = "br1", nic.Security{}, nil }

// sender writes frames as a guest does, by copies of the queues that its QEMU has.
type sender struct {
	testing.TB
	fd   int
	size int // of the vnet header
}

func (h *host) senderOf(vm string) *sender {
	h.Helper()
	d := h.showed(vm)
	pidfd, err := unix.PidfdOpen(d.PID, 0)
	if err != nil {
		h.Fatal(err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, d.Holders[0].FDs[0], 0)
	if err != nil {
		h.Fatal(err)
	}
	s := &sender{TB: h, fd: fd}
	h.Cleanup(s.close)
	if s.size, err = unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ); err != nil {
		h.Fatal(err)
	}
	return s
}

// close lets the device go with its QEMU.
func (s *sender) close() {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
	s.fd = -1
}

func (s *sender) send(frame []byte) {
	s.Helper()
	if _, err := unix.Write(s.fd, append(make([]byte, s.size), frame...)); err != nil {
		s.Fatal(err)
	}
}

// showed is what show says of a guest's only NIC.
func (h *host) showed(vm string) tapmgr.Detail {
	h.Helper()
	all, err := h.Show(h.context(30*time.Second), vm)
	if err != nil || len(all) != 1 {
		h.Fatal(all, err)
	}
	return all[0]
}

// last is a frame that all configurations let pass: its sender asks for itself.
var last = slices.Concat(bytes.Repeat([]byte{0xff}, 6), portsectest.MAC,
	[]byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1},
	portsectest.MAC, make([]byte, 4), make([]byte, 6), portsectest.IP4.AsSlice(), []byte("the last one"))

// arrives reports whether a frame comes out before one that passes and is sent behind it.
func (s *sender) arrives(far *os.File, frame []byte) (found bool) {
	s.Helper()
	s.send(frame)
	s.send(last)
	if err := far.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		s.Fatal(err)
	}
	b := make([]byte, 4096)
	for {
		n, err := far.Read(b)
		if err != nil {
			s.Fatal(err)
		}
		if bytes.Equal(b[:n], last) {
			return found
		}
		found = found || bytes.Equal(b[:n], frame)
	}
}

// frames sends named frames without tags, and demands that exactly the good ones come out, and that
// show counts the others by their reasons.
func (h *host) frames(vm string, far *os.File, names ...string) {
	h.Helper()
	s := h.senderOf(vm)
	defer s.close()
	drops := h.showed(vm).Drops
	sent := 0
	for _, c := range portsectest.Table() {
		if !c.Config.Equal(portsectest.Config()) || len(names) > 0 && !slices.Contains(names, c.Name) ||
			len(c.Frame) < 14 || c.Want == portsec.Tagged {
			continue
		}
		sent++
		if got, want := s.arrives(far, c.Frame), c.Want == portsec.Pass; got != want {
			h.Errorf("%s arrives: %v, want %v", c.Name, got, want)
		}
		if c.Want != portsec.Pass {
			if drops == nil {
				drops = map[string]uint64{}
			}
			drops[c.Want.String()]++
		}
	}
	if sent < 2 {
		h.Fatalf("%d frames were sent", sent)
	}
	now := h.showed(vm).Drops
	delete(drops, inbound.Refused) // the host's own neighbor discovery may be
	for why, n := range drops {
		if now[why] != n {
			h.Errorf("%d frames were dropped: %s; want %d", now[why], why, n)
		}
	}
}

// drops demands that a frame is dropped for that reason.
func (h *host) drops(vm string, frame []byte, why portsec.Reason) {
	h.Helper()
	s := h.senderOf(vm)
	defer s.close()
	before := h.showed(vm).Drops[why.String()]
	s.send(frame)
	if now := h.showed(vm).Drops[why.String()]; now != before+1 {
		h.Errorf("%d frames were dropped: %s; want %d", now, why, before+1)
	}
}

// places change a Spec for a place, and return where its frames come out.
var places = map[string]func(h *host, spec *nic.Spec) *os.File{
	"tap": func(h *host, _ *nic.Spec) *os.File { return h.hearBridge() },
	"macvtap": func(h *host, spec *nic.Spec) *os.File {
		h.wire()
		spec.Bridge, spec.Lower = "", (&guest{}).lowerSpec("net0", nic.Lower{}).Lower
		return h.hearFar()
	},
	"switch": func(h *host, spec *nic.Spec) *os.File {
		s := h.runSwitch()
		s.uplink()
		spec.Bridge, spec.Switch = "", &nic.Switch{Name: s.path, By: nic.ByTap, Storm: nic.NoLimit}
		return h.hearFar()
	},
}

// TestLiveSecurity: what a guest forges does not come out of a tap and of a macvtap, and its own
// frames do; of each reason there is a frame. The same through a switch.
func TestLiveSecurity(t *testing.T) {
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			g := h.empty()
			spec := secure(g.spec("net0"))
			far := place(h, &spec)
			h.attach(spec)
			h.frames(g.name, far)
			if got := h.check(); len(got) != 0 {
				t.Errorf("check: %+v", got)
			}
			if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || res.Changed {
				t.Errorf("the same again: %+v, %v", res, err)
			}
		})
	}
}

// TestLiveSecuritySet has the kernel, or the switch, check a NIC that is plugged already, and no
// longer.
func TestLiveSecuritySet(t *testing.T) {
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			g := h.empty()
			spec := g.spec("net0")
			spec.MAC = portsectest.MAC
			far := place(h, &spec)
			h.attach(spec)
			if _, err := h.set(g, func(s *nic.Spec) { *s = secure(*s) }); err != nil {
				t.Fatal(err)
			}
			h.frames(g.name, far, "ipv4", "mac-spoof", "ip-spoof", "arp-spoof-ip")
			if got := h.check(); len(got) != 0 {
				t.Errorf("check: %+v", got)
			}
			if _, err := h.set(g, func(s *nic.Spec) { s.Security, s.IP = nic.Security{}, nil }); err != nil {
				t.Fatal(err)
			}
			sender := h.senderOf(g.name)
			defer sender.close()
			for _, c := range portsectest.Table() {
				if c.Name == "ip-spoof" && !sender.arrives(far, c.Frame) {
					t.Error("a frame does not arrive without port security")
				}
			}
			if got := h.check(); len(got) != 0 {
				t.Errorf("check: %+v", got)
			}
		})
	}
}

// TestLiveSecurityByName: what libvirt opens by its name is checked before it can be opened, and
// what libvirt has made before it is on its bridge.
func TestLiveSecurityByName(t *testing.T) {
	h := newHost(t)
	h.wire()
	ctx := h.context(30 * time.Second)
	guarded := func(name string) {
		t.Helper()
		if s, err := bpfguard.Read(h.nl, h.link(name)); err != nil || !s.Is(portsectest.Config()) {
			t.Errorf("%s: %v, %v", name, s.Config, err)
		}
	}
	spec := func(vm string) nic.Spec {
		return secure(nic.Spec{Target: nic.Target{VM: vm}, NIC: "net0", Bridge: "br0", Queues: 1, Vhost: nic.VhostOff})
	}
	macvtap := spec("vm2")
	macvtap.Bridge, macvtap.Lower = "", (&guest{}).lowerSpec("net0", nic.Lower{}).Lower
	for _, s := range []nic.Spec{spec("vm1"), macvtap} {
		res, err := h.Host().Prepare(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		guarded(res.NIC.Interface)
	}
	adopted := spec("vm3")
	adopted.Device, adopted.MAC = "vnet0", net.HardwareAddr{2, 0, 0, 0, 0, 3}
	adopted.Security.Checks = portsec.MAC
	l := h.libvirtTap(adopted.Device, adopted.MAC)
	h.at("port", func(do func() error) error {
		if s, err := bpfguard.Read(h.nl, l); err != nil || s.Config.Checks != portsec.MAC {
			t.Errorf("%v, %v", s.Config, err)
		}
		return do()
	})
	if _, err := h.Host().Adopt(ctx, adopted); err != nil {
		t.Error(err)
	}
}

// hearBridge receives what br0 floods, which knows no groups.
func (h *host) hearBridge() *os.File {
	h.Helper()
	h.ip("link", "set", "br0", "type", "bridge", "mcast_snooping", "0")
	h.ip("link", "add", "port0", "up", "master", "br0", "type", "veth", "peer", "name", "far1")
	h.ip("link", "set", "far1", "up")
	// Where the kernel has br_netfilter, it would drop packets whose lengths are wrong.
	for _, family := range []string{"ip", "ip6"} {
		err := h.ns.Do(func() error {
			return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+family+"tables", []byte("0"), 0)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			h.Fatal(err)
		}
	}
	return nstest.PacketSocket(h, h.ns, h.link("far1").Index)
}

// hearFar receives what comes out at the other end of eth0's cable.
func (h *host) hearFar() *os.File {
	h.Helper()
	nl, err := rtnl.Open(h.far)
	if err != nil {
		h.Fatal(err)
	}
	defer nl.Close()
	l, err := nl.Link("far0")
	if err != nil {
		h.Fatal(err)
	}
	return nstest.PacketSocket(h, h.far, l.Index)
}

// TestLiveSecurityFaults fails and kills an attach with port security at each step: nothing is
// left. No tap is ever on the bridge, nor a macvtap up, whose frames are not checked.
func TestLiveSecurityFaults(t *testing.T) {
	for name, place := range map[string]func(h *host, spec *nic.Spec){
		"tap": func(*host, *nic.Spec) {},
		"macvtap": func(h *host, spec *nic.Spec) {
			h.wire()
			spec.Bridge, spec.Lower = "", (&guest{}).lowerSpec("net0", nic.Lower{}).Lower
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			g := h.empty()
			spec := secure(g.spec("net0"))
			place(h, &spec)
			names := h.stepNames(spec)
			at := slices.Index(names, "port security")
			puts := slices.IndexFunc(names, func(s string) bool { return s == "port" || s == "up" })
			if at < 0 || puts < at {
				t.Fatalf("the steps are %q", names)
			}
			h.faultAtEach(names[at-1:puts+2], func() { h.nothingLeft(g, "net0") }, func() error {
				_, err := h.Attach(h.context(20*time.Second), spec)
				return err
			})
			for _, after := range []bool{false, true} {
				cmd := h.command(order{Spec: spec, KillAt: "port security", After: after})
				out, err := cmd.CombinedOutput()
				if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%v: %s", err, out)
				}
				h.nothingLeft(g, "net0")
			}
			h.attach(spec)
		})
	}
}

// TestLiveSecurityChanges: check names a guard that somebody has removed or replaced, reconcile
// puts it back, and set changes it, also with a move; a killed set is completed.
func TestLiveSecurityChanges(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	g := h.empty()
	n := h.attach(secure(g.spec("net0")))
	dev := h.link(n.Interface)
	far := h.hearBridge()
	names := []string{"ipv4", "mac-spoof", "ip-spoof", "arp-spoof-ip"}
	wants := func(what string, findings int, found string) {
		t.Helper()
		got := h.check()
		if len(got) != findings ||
			findings > 0 && (got[0].What != "port security" || !strings.Contains(got[0].Found, found)) {
			t.Errorf("%s: check finds %+v, want %d with %q", what, got, findings, found)
		}
	}
	if err := bpfguard.Detach(h.nl, dev); err != nil {
		t.Fatal(err)
	}
	wants("removed", 1, "none")
	h.settled()
	wants("put back", 0, "")
	h.frames(g.name, far, names...)
	other := portsectest.Config()
	other.Checks = portsec.MAC
	if err := bpfguard.Attach(h.nl, dev, other); err != nil {
		t.Fatal(err)
	}
	wants("replaced", 1, "mac mac:")
	h.settled()
	wants("put back again", 0, "")

	steps := h.stepNamesOf(func() error { _, err := h.set(g, unsecured); return err })
	if slices.Index(steps, "port security") < slices.Index(steps, "bridge") {
		t.Errorf("a NIC that moves is not checked before it has moved: %q", steps)
	}
	h.faultAtEach(steps, func() {
		h.Run = nil
		wants("after a fault", 0, "")
		h.frames(g.name, far, names...)
	}, func() error { _, err := h.set(g, unsecured); return err })
	if _, err := h.set(g, unsecured); err != nil {
		t.Fatal(err)
	}
	wants("off", 0, "")
	if _, err := bpfguard.Read(h.nl, dev); err == nil {
		t.Error("the guard is still there")
	}
	steps = h.stepNamesOf(func() error { _, err := h.set(g, secured); return err })
	if slices.Index(steps, "port security") > slices.Index(steps, "bridge") {
		t.Errorf("a NIC that moves is not checked when it has moved: %q", steps)
	}
	cmd := h.command(order{Spec: h.changed(g, secured), Set: true, KillAt: "port security", After: true})
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	h.settled()
	wants("completed", 0, "")
	h.frames(g.name, far, names...)
	if _, err := h.set(g, func(s *nic.Spec) { s.IP = nil }); err == nil ||
		!errors.Is(err, nic.ErrInvalid) || !strings.Contains(err.Error(), "needs the NIC's own addresses") {
		t.Errorf("without addresses: %v", err)
	}
}

// TestLiveSecurityUnavailable: where the kernel may not check, an attach is refused, leaves
// nothing, and says what can be done instead.
func TestLiveSecurityUnavailable(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	h.Host().LookInto = func(f func() error) error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread, which has lost its capabilities, ends
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var sets [2]unix.CapUserData
			done <- cmp.Or(unix.Capset(&header, &sets[0]), f())
		}()
		return <-done
	}
	_, err := h.Attach(h.context(20*time.Second), secure(g.spec("net0")))
	if !errors.Is(err, bpfguard.ErrUnavailable) || !strings.Contains(err.Error(), "vmnet switch") {
		t.Errorf("got %v", err)
	}
	h.nothingLeft(g, "net0")
}
