package tapmgr_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/internal/vmm/qemu"
	"vmnet/internal/vmm/qmptest"
	"vmnet/qmp"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// TestAttachAndDetach: what an attach makes is in the kernel and in the guest, the same attach
// again asks the guest for nothing new, and a detach leaves nothing.
func TestAttachAndDetach(t *testing.T) {
	h, g := fakeTest(t)
	g.Behave(qmptest.Behaviour{CPUs: 2})
	spec := g.spec("net0")
	spec.Queues, spec.Port = nic.QueuesAuto, brport.Settings{Isolated: true}
	res, err := g.tryAttach(spec)
	if err != nil || !res.Changed {
		t.Fatalf("%+v, %v", res, err)
	}
	l := g.tap("net0")
	r, ok := nic.ParseRecord(l.Alias)
	switch {
	case !ok || r.VM != g.Name || r.NIC != "net0" || r.Source != "br0" || r.Phase != nic.PhasePlugged ||
		r.MAC.String() != res.NIC.MAC:
		t.Errorf("alias %q", l.Alias)
	case l.Tun == nil || l.Tun.Persist || !l.Up || l.HostIPv6 || l.MTU != 1500:
		t.Errorf("link %+v", l)
	case l.MAC.String() != stablemac.HostMAC(r.MAC).String():
		t.Errorf("the host's address is %s, the guest's %s", l.MAC, r.MAC)
	case l.Port == nil || l.Port.State != rtnl.Forwarding || h.masterOf(l) != "br0":
		t.Errorf("port %+v", l.Port)
	}
	g.has("net0")
	s := g.State()
	device, netdev := s.Devices["vmnet-net0"], s.Netdevs["vmnet-net0-netdev"]
	if device["driver"] != "virtio-net-pci" || device["mac"] != res.NIC.MAC || device["mq"] != true ||
		device["bus"] != "pci.0" || netdev["type"] != "tap" {
		t.Errorf("device %v on netdev %v", device, netdev)
	}
	list, err := h.List("")
	if err != nil || len(list) != 1 || list[0].PID != g.PID || list[0].Queues != 2 || list[0].State != "forwarding" ||
		list[0].Port != "isolated" {
		t.Errorf("list %+v, %v", list, err)
	}
	details, err := h.Show(h.context(10*time.Second), g.Name)
	if err != nil || len(details) != 1 || len(details[0].Holders) != 1 || len(details[0].Holders[0].FDs) != 2 ||
		details[0].Guest == nil || !details[0].Guest.Plugged {
		t.Errorf("show %+v, %v", details, err)
	}
	if got := h.check(); len(got) > 0 {
		t.Errorf("check %+v", got)
	}
	h.reconciled()

	asked := len(g.State().Asked)
	if res, err := g.tryAttach(spec); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	for _, command := range g.State().Asked[asked:] {
		if slices.Contains([]string{"getfd", "netdev_add", "device_add", "device_del", "netdev_del"}, command) {
			t.Errorf("the same again: the guest was asked for %s", command)
		}
	}
	if got := g.tap("net0"); got.Index != l.Index {
		t.Error("the same again: another tap")
	}

	if res, err := g.tryDetach("net0", 20*time.Second, false); err != nil || !res.Changed {
		t.Errorf("detach: %+v, %v", res, err)
	}
	g.nothingLeft()
	if res, err := g.tryDetach("net0", 20*time.Second, false); err != nil || res.Changed {
		t.Errorf("detach again: %+v, %v", res, err)
	}
}

// TestAttachOfAnother: what differs from the NIC that is there is named, and nothing changes.
func TestAttachOfAnother(t *testing.T) {
	h, g := fakeTest(t)
	h.bridge(bridge.Config{Name: "br1"})
	h.attach(g.spec("net0"))
	was := g.tap("net0")
	for want, change := range map[string]func(*nic.Spec){
		"br1":         func(s *nic.Spec) { s.Bridge = "br1" },
		"model":       func(s *nic.Spec) { s.Model = "e1000" },
		"MAC":         func(s *nic.Spec) { s.MAC = []byte{0x52, 0x54, 0, 9, 9, 9} },
		"queues":      func(s *nic.Spec) { s.Queues = 2 },
		"MTU":         func(s *nic.Spec) { s.MTU = 1400 },
		"port":        func(s *nic.Spec) { s.Port = brport.Settings{Isolated: true} },
		"further opt": func(s *nic.Spec) { s.DeviceOptions = map[string]string{"rombar": "0"} },
	} {
		spec := g.spec("net0")
		change(&spec)
		if _, err := g.tryAttach(spec); !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ErrExist, and %q", err, want)
		}
	}
	if now := g.tap("net0"); now.Index != was.Index || now.Alias != was.Alias {
		t.Errorf("the NIC has changed to %+v", now)
	}
	g.has("net0")
	h.attach(g.spec("net1"))
	g.has("net0", "net1")
	if _, err := g.tryDetach("net0", 20*time.Second, false); err != nil {
		t.Error(err)
	}
	g.has("net1")
	h.gone(g.link("net0"))
}

// TestFaultAtEachStep: whatever step fails, before or after it was done, nothing is left.
func TestFaultAtEachStep(t *testing.T) {
	h, g := fakeTest(t)
	spec := g.spec("net0")
	spec.Queues = 2
	h.faultAtEveryStep(spec, g.nothingLeft)
	h.attach(spec)
	g.has("net0")
}

// TestRefusalOfEachCommand: whatever QEMU refuses is the error, and nothing is left.
func TestRefusalOfEachCommand(t *testing.T) {
	_, g := fakeTest(t)
	spec := g.spec("net0")
	spec.Queues = nic.QueuesAuto // for which QEMU is asked for the guest's CPUs
	for _, command := range []string{
		"query-cpus-fast", "qom-list", "qom-get", "getfd", "netdev_add", "device_add",
	} {
		g.Behave(qmptest.Behaviour{Refuse: map[string]string{command: "not today"}})
		_, err := g.tryAttach(spec)
		var refusal *qmp.Error
		if !errors.As(err, &refusal) || refusal.Command != command || !errors.Is(err, nic.ErrHandover) {
			t.Errorf("%s: got %v, want its refusal while it is handed over", command, err)
		}
		g.Behave(qmptest.Behaviour{})
		g.nothingLeft()
	}
}

// TestNoTypesAreListed: to attach the best NIC takes no list of QEMU's types, for which a QEMU of
// several modules loads all of them.
func TestNoTypesAreListed(t *testing.T) {
	h, g := fakeTest(t)
	g.Behave(qmptest.Behaviour{Refuse: map[string]string{"qom-list-types": "not today"}})
	h.attach(g.spec("net0"))
	g.has("net0")
}

// TestSilentGuest: a guest that does not answer costs no more than the caller's patience, and what
// it was sent is taken back when it goes on.
func TestSilentGuest(t *testing.T) {
	h, g := fakeTest(t)
	attachWithin := func(d time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		_, err := h.Attach(ctx, g.spec("net0"))
		return err
	}
	h.at("getfd vmnet-net0-q0", func(do func() error) error {
		g.Pause()
		return do()
	})
	if err := attachWithin(time.Second); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent at getfd: %v", err)
	}
	h.Run = nil
	if err := attachWithin(time.Second); !errors.Is(err, qmp.ErrBusy) {
		t.Errorf("silent from the start: %v", err)
	}
	g.Resume()
	h.gone(g.link("net0"))
	h.attach(g.spec("net0"))
	g.has("net0")
}

// TestGuestThatKeepsItsNIC: the NIC works until the guest releases it, or the detach is
// forced.
func TestGuestThatKeepsItsNIC(t *testing.T) {
	h, g := fakeTest(t)
	h.attach(g.spec("net0"))
	g.Behave(qmptest.Behaviour{Object: true})
	if _, err := g.tryDetach("net0", 20*time.Second, false); !errors.Is(err, qmp.ErrGuestRefused) {
		t.Errorf("a guest that objects: %v", err)
	}
	if l := g.tap("net0"); !l.Up || h.masterOf(l) != "br0" {
		t.Errorf("a guest that objects has lost its NIC: %+v", l)
	}
	g.Behave(qmptest.Behaviour{Refuse: map[string]string{"device_del": "device_del not allowed while migrating"}})
	if _, err := g.tryDetach("net0", 20*time.Second, false); err == nil || g.state() != "forwarding" {
		t.Errorf("a guest that QEMU does not ask: %v, state %q", err, g.state())
	}
	g.Behave(qmptest.Behaviour{Ignore: []string{"device_del"}})
	if _, err := g.tryDetach("net0", time.Second, false); !errors.Is(err, qmp.ErrUnplugTimeout) ||
		!strings.Contains(err.Error(), "device_del: no reply") || g.state() != nic.Detaching {
		t.Errorf("a QEMU that stops answering: %v, state %q", err, g.state())
	}
	g.Behave(qmptest.Behaviour{Refuse: map[string]string{"device_del": "device_del not allowed while migrating"}})
	if _, err := g.tryDetach("net0", 20*time.Second, false); err == nil || g.state() != nic.Detaching {
		t.Errorf("a guest that was asked before: %v, state %q", err, g.state())
	}
	g.Behave(qmptest.Behaviour{Object: true})
	if _, err := g.tryDetach("net0", 20*time.Second, false); !errors.Is(err, qmp.ErrGuestRefused) ||
		g.state() != "forwarding" {
		t.Errorf("a guest that objects in the end: %v, state %q", err, g.state())
	}
	g.Behave(qmptest.Behaviour{Keep: true})
	if _, err := g.tryDetach("net0", time.Second, false); !errors.Is(err, qmp.ErrUnplugTimeout) {
		t.Errorf("a guest that keeps it: %v", err)
	}
	if state := g.state(); state != nic.Detaching {
		t.Errorf("state %q", state)
	}
	if _, err := g.tryAttach(g.spec("net0")); !errors.Is(err, nic.ErrExist) {
		t.Errorf("attach while it is detached: %v", err)
	}
	if got := h.check(); len(got) != 1 || got[0].What != "detach" || got[0].MendedBy != nic.MendDetach {
		t.Errorf("check %+v", got)
	}
	h.reconciled(nic.Action{
		VM: g.Name, NIC: "net0", Interface: g.link("net0"),
		Action: "left alone: the guest has not released it yet",
	})
	g.has("net0")

	if res, err := g.tryDetach("net0", 20*time.Second, true); err != nil ||
		!strings.Contains(strings.Join(res.Notices, " "), "keeps the dead device") {
		t.Errorf("forced: %+v, %v", res, err)
	}
	h.gone(g.link("net0"))
	if s := g.State(); len(s.Netdevs) > 0 || len(s.Devices) != 1 {
		t.Errorf("after a forced detach the guest has %+v", s)
	}
	if _, err := g.tryAttach(g.spec("net0")); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "vmnet detach") {
		t.Errorf("attach over the dead device: %v", err)
	}
	g.Behave(qmptest.Behaviour{})
	if _, err := g.tryDetach("net0", 20*time.Second, false); err != nil {
		t.Error(err)
	}
	g.nothingLeft()
}

// TestForceOnASilentGuest: the NIC is off the network although its monitor does not answer.
func TestForceOnASilentGuest(t *testing.T) {
	h, g := fakeTest(t)
	h.attach(g.spec("net0"))
	g.Pause()
	res, err := g.tryDetach("net0", time.Second, true)
	if err == nil || !res.Changed || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("%+v, %v", res, err)
	}
	if l := g.tap("net0"); l.Up || l.Master != 0 {
		t.Errorf("it is still on the network: %+v", l)
	}
	g.Resume()
	if _, err := g.tryDetach("net0", 20*time.Second, false); err != nil {
		t.Error(err)
	}
	g.nothingLeft()
}

// TestGuestThatEnds: its taps go with it.
func TestGuestThatEnds(t *testing.T) {
	h, g := fakeTest(t)
	h.attach(g.spec("net0"))
	g.Kill()
	h.gone(g.link("net0"))
	if res, err := g.tryDetach("net0", 20*time.Second, false); err != nil || res.Changed || len(res.Notices) != 1 {
		t.Errorf("detach: %+v, %v", res, err)
	}
	if _, err := g.tryAttach(g.spec("net0")); !errors.Is(err, qemu.ErrNotFound) {
		t.Errorf("attach: %v", err)
	}
	h.reconciled()
}

// TestAttachKilled: reconcile, or the same attach, makes well what a killed attach has left.
func TestAttachKilled(t *testing.T) {
	for step, test := range map[string]struct {
		state     nic.State
		finding   string // check's
		plugged   bool   // the guest has it all
		reconcile string
	}{
		"getfd vmnet-net0-q0":          {nic.Incomplete, "device", false, "removed: the guest has no such device"},
		"netdev_add vmnet-net0-netdev": {nic.Incomplete, "device", false, "removed: the guest has no such device"},
		"device_add vmnet-net0": {
			nic.Incomplete, "attach",
			true, "kept: it is plugged, which its alias did not say yet",
		},
	} {
		for _, mend := range []string{"reconcile", "attach", "detach"} {
			t.Run(strings.Fields(step)[0]+" "+mend, func(t *testing.T) {
				h, g := fakeTest(t)
				g.killedAttach(g.spec("net0"), step)
				if state := g.state(); state != test.state {
					t.Errorf("state %q, want %q", state, test.state)
				}
				if got := h.check(); !slices.ContainsFunc(got, func(d nic.Difference) bool {
					return d.What == test.finding
				}) {
					t.Errorf("check %+v, want %s", got, test.finding)
				}
				switch mend {
				case "reconcile":
					h.reconciled(nic.Action{
						VM: g.Name, NIC: "net0", Interface: g.link("net0"),
						Action: test.reconcile, Changed: true,
					})
					if !test.plugged {
						g.nothingLeft()
						return
					}
				case "attach":
					if res, err := g.tryAttach(g.spec("net0")); err != nil || !res.Changed {
						t.Errorf("the same again: %+v, %v", res, err)
					}
				case "detach":
					if res, err := g.tryDetach("net0", 20*time.Second, false); err != nil || !res.Changed {
						t.Errorf("%+v, %v", res, err)
					}
					g.nothingLeft()
					return
				}
				g.has("net0")
				if state := g.state(); state != "forwarding" {
					t.Errorf("then its state is %q", state)
				}
				if got := h.check(); len(got) > 0 {
					t.Errorf("then check %+v", got)
				}
			})
		}
	}
}

// TestWhatDiffersIsMended: check names what somebody has changed, and reconcile and the same attach
// mend it.
func TestWhatDiffersIsMended(t *testing.T) {
	h, g := fakeTest(t)
	spec := g.spec("net0")
	spec.Port = brport.Settings{Isolated: true}
	made := h.attach(spec)
	for _, mtu := range []string{"1600", "1500"} { // one that was never set follows the ports'
		h.ip("link", "set", "br0", "mtu", mtu)
	}
	h.settled()
	set := func(attrs ...rtnl.Attr) func() error {
		return func() error { return h.nl.Set(g.tap("net0").Index, attrs...) }
	}
	for what, spoil := range map[string]func() error{
		"link":     set(rtnl.Up(false)),
		"carrier":  set(rtnl.Carrier(false)),
		"host MAC": set(rtnl.MAC([]byte{0x52, 0x54, 0, 9, 9, 9})),
		"MTU":      set(rtnl.MTU(1400)),
		"bridge":   set(rtnl.Master(0)),
	} {
		for _, mend := range []string{"reconcile", "attach"} {
			if err := spoil(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if got := h.check(); len(got) != 1 || got[0].What != what || got[0].MendedBy != nic.MendReconcile ||
				got[0].Interface != made.Interface {
				t.Errorf("%s: check %+v", what, got)
			}
			if mend == "attach" {
				if res, err := g.tryAttach(spec); err != nil || !res.Changed {
					t.Errorf("%s: the same again %+v, %v", what, res, err)
				}
			} else if actions, err := h.Reconcile(h.context(20*time.Second), false); err != nil || len(actions) != 1 ||
				!actions[0].Changed || actions[0].Error != "" {
				t.Errorf("%s: reconcile %+v, %v", what, actions, err)
			}
			if got := h.check(); len(got) > 0 {
				t.Errorf("%s, after %s: check %+v", what, mend, got)
			}
		}
	}
	if l := g.tap("net0"); h.masterOf(l) != "br0" || !l.Up || l.MTU != 1500 {
		t.Errorf("then it is %+v", l)
	}
}

// TestLeftOverTap: a tap of ours that nobody holds is listed so, and is removed by reconcile, by
// detach and by the next attach. Others' taps are not touched.
func TestLeftOverTap(t *testing.T) {
	h, g := fakeTest(t)
	for _, remove := range []string{"reconcile", "detach", "attach"} {
		h.ip("tuntap", "add", g.link("net0"), "mode", "tap")
		h.ip("tuntap", "add", "theirs", "mode", "tap")
		alias := "vmnet vm=" + g.Name +
			" nic=net0 type=tap source=br0 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1"
		if err := h.nl.Set(g.tap("net0").Index, rtnl.Alias(alias)); err != nil {
			t.Fatal(err)
		}
		if state := g.state(); state != nic.LeftOver {
			t.Errorf("state %q", state)
		}
		if got := h.check(); len(got) != 1 || got[0].What != "holder" {
			t.Errorf("check %+v", got)
		}
		if dry, err := h.Reconcile(h.context(20*time.Second), true); err != nil || len(dry) != 1 || !dry[0].Changed {
			t.Errorf("dry run: %+v, %v", dry, err)
		}
		left := g.tap("net0").Index
		switch remove {
		case "reconcile":
			h.reconciled(nic.Action{
				VM: g.Name, NIC: "net0", Interface: g.link("net0"),
				Action: "removed: nobody holds it", Changed: true,
			})
			h.noLink(g.link("net0"))
		case "detach":
			if res, err := g.tryDetach("net0", 20*time.Second, false); err != nil || !res.Changed {
				t.Errorf("%+v, %v", res, err)
			}
			h.noLink(g.link("net0"))
		case "attach":
			h.attach(g.spec("net0"))
			if g.tap("net0").Index == left {
				t.Error("the attach has taken the left-over tap")
			}
			g.has("net0")
		}
		if _, err := h.nl.Link("theirs"); err != nil {
			t.Errorf("%s: the other tap: %v", remove, err)
		}
		h.ip("link", "del", "theirs")
	}
}

// TestAttachRefusals: what cannot be is said before anything is made.
func TestAttachRefusals(t *testing.T) {
	h, g := fakeTest(t)
	h.ip("link", "add", g.link("taken"), "type", "veth", "peer", "peer0")
	other := h.fake(qmptest.Config{})
	twin := qmptest.Start(h, qmptest.Config{Name: other.Name})
	for name, test := range map[string]struct {
		change func(*nic.Spec)
		want   error
		text   string
	}{
		"no such bridge":         {func(s *nic.Spec) { s.Bridge = "br7" }, fs.ErrNotExist, "br7"},
		"not a bridge":           {func(s *nic.Spec) { s.Bridge = "lo" }, nic.ErrLink, "lo"},
		"no such guest":          {func(s *nic.Spec) { s.VM = "nobody" }, qemu.ErrNotFound, "nobody"},
		"no such process":        {func(s *nic.Spec) { s.PID = 1 << 22 }, qemu.ErrNotFound, ""},
		"another guest's":        {func(s *nic.Spec) { s.PID = other.PID }, nic.ErrOtherGuest, other.Name},
		"two of one name":        {func(s *nic.Spec) { s.VM = other.Name }, qemu.ErrAmbiguous, "--pid"},
		"another's monitor":      {func(s *nic.Spec) { s.PID, s.QMP = g.PID, other.Sockets[0] }, fs.ErrPermission, ""},
		"no monitor there":       {func(s *nic.Spec) { s.QMP = "/nonexistent" }, fs.ErrNotExist, "/nonexistent"},
		"not a libvirt guest":    {func(s *nic.Spec) { s.Via = nic.ViaMonitor }, nic.ErrInvalid, "--via"},
		"no NIC id":              {func(s *nic.Spec) { s.NIC = "a b" }, nic.ErrInvalid, "a b"},
		"no such model":          {func(s *nic.Spec) { s.Model = "ne7k" }, nic.ErrHandover, "ne7k"},
		"the interface is there": {func(s *nic.Spec) { s.NIC = "taken" }, nic.ErrLink, g.link("taken")},
	} {
		spec := g.spec("net0")
		test.change(&spec)
		if _, err := g.tryAttach(spec); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got %v, want %v with %q", name, err, test.want, test.text)
		}
	}
	g.nothingLeft()
	for pid, q := range map[int]*qmptest.QEMU{other.PID: other.QEMU, twin.PID: twin} {
		spec := other.spec("net0")
		spec.PID = pid
		if res, err := g.tryAttach(spec); err != nil || res.NIC.PID != pid && res.NIC.PID != 0 {
			t.Errorf("one of two by its process: %+v, %v", res, err)
		}
		if got := q.State().Devices; len(got) != 1 {
			t.Errorf("process %d has %v", pid, got)
		}
		if _, err := h.Detach(h.context(20*time.Second),
			tapmgr.DetachSpec{Target: spec.Target, NIC: "net0"}); err != nil {
			t.Error(err)
		}
	}
}

// TestGuestWithoutAMonitor: the error says what to change about it.
func TestGuestWithoutAMonitor(t *testing.T) {
	t.Parallel()
	h := newUserHost(t)
	g := h.fake(qmptest.Config{Monitors: -1})
	if _, err := g.tryAttach(g.spec("net0")); !errors.Is(err, qemu.ErrNoMonitor) ||
		!strings.Contains(err.Error(), "-qmp unix:") {
		t.Errorf("got %v", err)
	}
	h.noLink(g.link("net0"))
}

// TestDryRun: the steps have names and texts, and none is run.
func TestDryRun(t *testing.T) {
	h, g := fakeTest(t)
	names := h.stepNames(g.spec("net0"))
	for _, want := range []string{
		"getfd vmnet-net0-q0", "netdev_add vmnet-net0-netdev", "device_add vmnet-net0",
		"verify",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("steps %q: no %s", names, want)
		}
	}
	g.nothingLeft()
}

// TestBridgeThatGoes: a NIC that has lost its bridge is put back once the bridge is there again,
// and follows one that was renamed.
func TestBridgeThatGoes(t *testing.T) {
	h, g := fakeTest(t)
	h.attach(g.spec("net0"))
	if err := h.deleteBridge("br0"); err != nil {
		t.Fatal(err)
	}
	if state := g.state(); state != nic.NoBridge {
		t.Errorf("state %q", state)
	}
	if got := h.check(); len(got) != 1 || got[0].What != "bridge" || got[0].MendedBy != nic.MendAdmin {
		t.Errorf("check %+v", got)
	}
	h.bridge(bridge.Config{Name: "br0"})
	if got := h.check(); len(got) == 0 || got[0].What != "bridge" || got[0].MendedBy != nic.MendReconcile {
		t.Errorf("check with the bridge back %+v", got)
	}
	if actions, err := h.Reconcile(h.context(20*time.Second), false); err != nil ||
		len(actions) == 0 || !actions[0].Changed {
		t.Errorf("reconcile %+v, %v", actions, err)
	}
	if l := g.tap("net0"); h.masterOf(l) != "br0" {
		t.Errorf("its master is %q", h.masterOf(l))
	}
	h.ip("link", "set", "br0", "name", "br9")
	if list, err := h.List(g.Name); err != nil || len(list) != 1 || list[0].Source != "br9" {
		t.Errorf("list %+v, %v: want it on br9", list, err)
	}
	if res, err := g.tryAttach(g.spec("net0")); err != nil ||
		!strings.Contains(strings.Join(res.Notices, " "), "br0 is called br9 now") {
		t.Errorf("the same attach, by the former name: %+v, %v", res, err)
	}
}

// TestAddressThatItsHolderHasChanged is set back.
func TestAddressThatItsHolderHasChanged(t *testing.T) {
	h, g := fakeTest(t)
	h.attach(g.spec("net0"))
	l := g.tap("net0")
	if a, err := h.SetBackAddress(l.Index); err != nil || a.Changed {
		t.Errorf("as it should be: %+v, %v", a, err)
	}
	if err := h.nl.Set(l.Index, rtnl.MAC([]byte{0x52, 0x54, 0, 9, 9, 9})); err != nil {
		t.Fatal(err)
	}
	if a, err := h.SetBackAddress(l.Index); err != nil || !a.Changed || a.VM != g.Name {
		t.Errorf("changed: %+v, %v", a, err)
	}
	if now := g.tap("net0"); now.MAC.String() != l.MAC.String() {
		t.Errorf("address %s, want %s", now.MAC, l.MAC)
	}
	if a, err := h.SetBackAddress(1 << 20); err != nil || a.Changed {
		t.Errorf("no such link: %+v, %v", a, err)
	}
}

// TestWaitForwarding ends when the port forwards, with the bridge, and with the caller's patience.
func TestWaitForwarding(t *testing.T) {
	h, g := fakeTest(t)
	made := h.attach(g.spec("net0"))
	if err := h.WaitForwarding(h.context(10*time.Second), made); err != nil {
		t.Error(err)
	}
	if err := h.nl.Set(g.tap("net0").Index, rtnl.Up(false)); err != nil {
		t.Fatal(err)
	}
	if err := h.WaitForwarding(h.context(20*time.Millisecond), made); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a port that is down: %v", err)
	}
	if err := h.deleteBridge("br0"); err != nil {
		t.Fatal(err)
	}
	if err := h.WaitForwarding(h.context(10*time.Second), made); err == nil ||
		!strings.Contains(err.Error(), "on no bridge") {
		t.Errorf("without its bridge: %v", err)
	}
}
