package backend

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vmnet/bridge/brport"
	"vmnet/internal/alias"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/macvtap/vtap"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// unprivileged is a Maker that plans in the test's own netns. It has no netlink socket.
func unprivileged(t *testing.T) *Maker {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return &Maker{Host: &inventory.Host{NS: ns}}
}

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}

// ask is a Spec with its defaults.
func ask(edit func(*nic.Spec)) nic.Spec {
	s := nic.Spec{
		Target: nic.Target{VM: "P2"}, NIC: "net0", Bridge: "br0", MAC: guestMAC, Vhost: nic.VhostOff,
		Queues: 2,
	}
	edit(&s)
	return s.WithDefaults()
}

func onLower(s *nic.Spec) {
	s.Bridge, s.Lower = "", &nic.Lower{Kind: vtap.Macvtap, Device: "eth0", Mode: "bridge"}
}

func onIPVtap(s *nic.Spec) {
	s.MAC, s.Lower.Kind, s.Lower.Mode = nil, vtap.IPVtap, "l2"
	s.Lower.Addrs = []netip.Prefix{netip.MustParsePrefix("10.7.0.2/24")}
}

func onSwitch(by nic.By) func(*nic.Spec) {
	return func(s *nic.Spec) { s.Bridge, s.Queues, s.Switch = "", 1, &nic.Switch{Name: "sw0", By: by} }
}

func byName(and func(*nic.Spec)) func(*nic.Spec) {
	return func(s *nic.Spec) { and(s); s.Via = nic.ViaLibvirt }
}

func onBridge(*nic.Spec) {}

// withoutHost stands in for PlanInterface: it gives the kind what its plan would read from the
// host.
func (h *NIC) withoutHost() *NIC {
	br, parent := &rtnl.Link{Index: 7, Name: "br0", MTU: 1500}, &rtnl.Link{Index: 8, Name: "eth0", MTU: 1500}
	h.Record.Type, h.Record.Source = nic.TypeTap, "br0"
	h.Interface = Interface{Name: "P2-net0", MaxMTU: 1500, Bridge: br}
	tap := func(s *hostTap) { s.name, s.altName, s.mtu = "P2-net0", "", 1500 }
	lower := func(s *macvtapInterface) {
		s.name, s.parent = "P2-net0", parent
		h.Record.Type, h.Record.Source, h.Interface.Bridge = string(vtap.Macvtap), "eth0", nil
	}
	switch s := h.host.(type) {
	case *placedTap:
		tap(&s.hostTap)
		s.place = &bridgePlace{br}
	case *namedTap:
		tap(&s.hostTap)
		s.place = &bridgePlace{br}
	case *helperTap:
		tap(&s.hostTap)
		s.place = &bridgePlace{br}
	case *switchTap:
		tap(&s.hostTap)
		h.Record.Switch, h.Record.Source, h.Interface.Bridge = true, "sw0", nil
	case *switchSocket:
		s.name = "P2-net0"
		h.Record.Type, h.Record.Switch, h.Record.Source, h.Interface.Bridge = nic.TypeSocket, true, "sw0", nil
	case *sharedGuest:
		s.name = "P2-net0"
		h.Record.Type, h.Record.Switch, h.Record.Source, h.Interface.Bridge = nic.TypeVhostUser, true, "sw0", nil
	case *macvtapInterface:
		lower(s)
	case *namedMacvtap:
		lower(&s.macvtapInterface)
	}
	return h
}

// TestPlanByKind: which interface a Spec asks for, what its steps are, in which order, and what of
// it QEMU is to get.
func TestPlanByKind(t *testing.T) {
	tap := qmp.NIC{Queues: 2, Label: true}
	for name, tc := range map[string]struct {
		spec   func(*nic.Spec)
		helper bool
		kind   string
		steps  string
		device qmp.NIC
	}{
		"bridge":            {onBridge, false, "placedTap", "label, tap, queue 1, settings, port", tap},
		"bridge and helper": {onBridge, true, "helperTap", "label, helper", tap},
		"switch by tap": {
			onSwitch(nic.ByTap), false, "switchTap", "label, tap, settings, up, port", qmp.NIC{Queues: 1, Label: true},
		},
		"switch by socket": {
			onSwitch(nic.BySocket), false, "switchSocket", "label, socket, port",
			qmp.NIC{Backend: qmp.Socket, Queues: 1, Label: true},
		},
		"switch by vhost-user": {
			onSwitch(nic.ByVhostUser), true, "sharedGuest", "label, directory, port",
			qmp.NIC{Backend: qmp.VhostUser, Queues: 1, Label: true},
		},
		"switch and helper": {
			onSwitch(nic.ByAuto), true, "switchSocket", "label, socket, port",
			qmp.NIC{Backend: qmp.Socket, Queues: 1, Label: true},
		},
		"switch, several queues and helper": {
			func(s *nic.Spec) { onSwitch(nic.ByAuto)(s); s.Queues = 2 }, true, "switchTap",
			"label, tap, queue 1, settings, up, port", tap,
		},
		"parent device": {
			onLower, false, "macvtapInterface", "label, macvtap, settings, queue 0, queue 1, up",
			qmp.NIC{Queues: 2, Netns: true, Label: true},
		},
		"bridge by name": {byName(onBridge), false, "namedTap", "tap, settings, port, persist", qmp.NIC{Queues: 2}},
		"parent device by name": {
			byName(onLower), false, "namedMacvtap", "macvtap, settings, node, up", qmp.NIC{Queues: 2},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := unprivileged(t)
			if tc.helper {
				m.HelperPath = "/helper"
			}
			h := m.New(ask(tc.spec), nic.PhaseAttaching).withoutHost()
			if kind := strings.TrimPrefix(fmt.Sprintf("%T", h.host), "*backend."); kind != tc.kind {
				t.Fatalf("a %s, want a %s", kind, tc.kind)
			}
			if err := h.PlanDevice(h.Spec.Queues); err != nil {
				t.Fatal(err)
			}
			steps, err := h.HostSteps(42)
			if err != nil {
				t.Fatal(err)
			}
			if got := names(steps); got != tc.steps {
				t.Errorf("steps %s, want %s", got, tc.steps)
			}
			tc.device.ID, tc.device.MAC, tc.device.Model = "vmnet-net0", guestMAC, nic.DefaultModel
			if diff := cmp.Diff(tc.device, h.Device, cmpopts.IgnoreUnexported(qmp.NIC{})); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
			if n := len(h.Files.All()); n != 0 {
				t.Errorf("%d files are open, though no step has run", n)
			}
		})
	}
}

func names(steps []step.Step) string {
	var all []string
	for _, s := range steps {
		all = append(all, s.Name)
	}
	return strings.Join(all, ", ")
}

// TestRecordOfSteps: the interface has its record before anything else can see its files, with the
// phase; the final one has none. Both are of the record as it is when the steps are listed.
func TestRecordOfSteps(t *testing.T) {
	h := unprivileged(t).New(ask(onBridge), nic.PhaseAttaching).withoutHost()
	if err := h.PlanDevice(2); err != nil {
		t.Fatal(err)
	}
	h.Record.Model = "virtio-net-ccw" // as the guest decides after the plan
	steps, err := h.HostSteps(42)
	if err != nil {
		t.Fatal(err)
	}
	underWay, final := textOf(steps, "settings"), h.FinalAlias()
	for _, want := range []string{"vm=P2", "model=virtio-net-ccw", "queues=2", "state=attaching"} {
		if !strings.Contains(underWay, want) {
			t.Errorf("%s has no %s", underWay, want)
		}
	}
	if strings.Contains(final, "state=") || !strings.Contains(final, "model=virtio-net-ccw") {
		t.Errorf("the final record is %s", final)
	}
	if label := textOf(steps, "label"); !strings.Contains(label, "virtio-net-ccw") ||
		strings.Contains(label, "state=") {
		t.Errorf("the label is %s", label)
	}
}

func textOf(steps []step.Step, name string) string {
	i := slices.IndexFunc(steps, func(s step.Step) bool { return s.Name == name })
	if i < 0 {
		return ""
	}
	return steps[i].Text
}

// TestLabels: who gives the VMM a label.
func TestLabels(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spec  func(*nic.Spec)
		phase nic.Phase
		owner int
		want  bool
	}{
		{"attach", onBridge, nic.PhaseAttaching, 0, true},
		{"launch for a user", onBridge, nic.PhasePlugged, 1000, true},
		{"helper, whose caller gives it", onBridge, nic.PhaseAttaching, 1000, false},
		{"libvirt opens it", byName(onBridge), nic.PhaseStarting, 0, false},
		{"socket of a user", onSwitch(nic.BySocket), nic.PhaseAttaching, 1000, true},
		{"no room", func(s *nic.Spec) { s.VM = strings.Repeat("g", 200) }, nic.PhaseAttaching, 0, false},
	} {
		m := unprivileged(t)
		m.Owner = tc.owner
		h := m.New(ask(tc.spec), tc.phase).withoutHost()
		if label, err := h.label(); err != nil || (label != "") != tc.want {
			t.Errorf("%s: label %q, %v", tc.name, label, err)
		}
	}
}

// TestPlanDevice: what the guest sees, and what is refused.
func TestPlanDevice(t *testing.T) {
	for _, tc := range []struct {
		name string
		mtu  int // of the bridge
		spec func(*nic.Spec)
		want func(*qmp.NIC)
		err  string
	}{
		{"the usual MTU is left out", 1500, onBridge, func(*qmp.NIC) {}, ""},
		{"the bridge's MTU", 9000, onBridge, func(n *qmp.NIC) { n.HostMTU = 9000 }, ""},
		{"a smaller MTU", 9000, func(s *nic.Spec) { s.MTU = 1400 }, func(n *qmp.NIC) { n.HostMTU = 1400 }, ""},
		{"too large an MTU", 1500, func(s *nic.Spec) { s.MTU = 1501 }, nil, "MTU 1501: br0 carries at most 1500 bytes"},
		{
			"a model that shows no MTU", 9000,
			func(s *nic.Spec) { s.Model, s.Queues = "e1000e", 1 },
			func(n *qmp.NIC) { n.Model, n.Queues = "e1000e", 1 }, "",
		},
		{
			"options and a place", 1500,
			func(s *nic.Spec) { s.DeviceOptions = map[string]string{"bus": "port0", "addr": "1", "rombar": "0"} },
			func(n *qmp.NIC) { n.Bus, n.Addr, n.Options = "port0", "1", map[string]string{"rombar": "0"} }, "",
		},
		{
			"names that no alias has room for", 1500, func(s *nic.Spec) { s.VM = strings.Repeat("g", 250) }, nil,
			"shorten the guest's name",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := ask(tc.spec)
			h := unprivileged(t).New(spec, nic.PhaseAttaching).withoutHost()
			h.Interface.MaxMTU = tc.mtu
			err := h.PlanDevice(spec.Queues)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, want %q", err, tc.err)
				}
				return
			}
			want := qmp.NIC{ID: "vmnet-net0", MAC: guestMAC, Model: nic.DefaultModel, Queues: 2, Label: true}
			tc.want(&want)
			if diff := cmp.Diff(want, h.Device, cmpopts.IgnoreUnexported(qmp.NIC{}),
				cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if len(spec.DeviceOptions) > 0 && spec.DeviceOptions["bus"] == "" {
				t.Error("the Spec's own options were changed")
			}
		})
	}
}

// TestFilesOfASocket: the steps add the files that QEMU gets, an undo and Close close each of them.
func TestFilesOfASocket(t *testing.T) {
	for name, closing := range map[string]func(*NIC, []step.Step) error{
		"close": func(h *NIC, _ []step.Step) error { return h.Close() },
		"undo":  func(_ *NIC, steps []step.Step) error { return step.Undo(t.Context(), steps) },
		"both": func(h *NIC, steps []step.Step) error {
			return errors.Join(step.Undo(t.Context(), steps), h.Close(), h.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := unprivileged(t).New(ask(onSwitch(nic.BySocket)), nic.PhasePlugged).withoutHost()
			h.lifeline.wanted = true
			if err := h.PlanDevice(1); err != nil {
				t.Fatal(err)
			}
			steps, err := h.HostSteps(os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			if got := names(steps); got != "label, socket, lifeline, port" {
				t.Fatalf("steps %s", got)
			}
			steps = steps[:3] // there is no switch
			if err := step.Run(t.Context(), steps, nil); err != nil {
				t.Fatal(err)
			}
			files := append(h.Files.All(), h.lifeline.read, h.lifeline.write, h.host.(*switchSocket).near)
			if len(h.Files.Queues) != 1 || h.Files.Label == nil || len(files) != 5 || slices.Contains(files, nil) {
				t.Fatalf("files %+v, %v", h.Files, files)
			}
			if err := closing(h, steps); err != nil {
				t.Error(err)
			}
			for _, f := range files {
				if _, err := f.Stat(); !errors.Is(err, os.ErrClosed) {
					t.Errorf("%s is open: %v", filepath.Base(f.Name()), err)
				}
			}
			if n := len(h.Files.All()); n != 0 {
				t.Errorf("%d files are left in the list", n)
			}
		})
	}
}

// TestMayHaveTap: bridges on which no tap can work.
func TestMayHaveTap(t *testing.T) {
	for name, tc := range map[string]struct {
		br   rtnl.Link
		port brport.Settings
		want string
	}{
		"ordinary": {rtnl.Link{MTU: 1500, Bridge: &rtnl.Bridge{}}, brport.Settings{}, ""},
		"MTU":      {rtnl.Link{MTU: 65535, Bridge: &rtnl.Bridge{}}, brport.Settings{}, "more than the 65521"},
		"no VLAN": {
			rtnl.Link{MTU: 1500, Bridge: &rtnl.Bridge{VLANFiltering: true}},
			brport.Settings{},
			"name one with --vlan",
		},
		"in a VLAN": {rtnl.Link{MTU: 1500, Bridge: &rtnl.Bridge{VLANFiltering: true}}, brport.Settings{VLAN: 7}, ""},
	} {
		err := mayHaveTap(&tc.br, tc.port)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestRequestOfAnAttach: a helper trusts nothing in a request.
func TestRequestOfAnAttach(t *testing.T) {
	good := tapRequest{
		VM: "P2", NIC: "net0", Bridge: "br0", MAC: guestMAC.String(), Model: nic.DefaultModel, Queues: 2,
		Via: nic.ViaMonitor,
	}
	if s, err := good.spec(); err != nil || s.VM != "P2" || s.Queues != 2 || s.Vhost != nic.VhostOff || s.Via != "" {
		t.Errorf("%+v, %v", s, err)
	}
	for want, edit := range map[string]func(*tapRequest){
		"0 queues":      func(r *tapRequest) { r.Queues = 0 },
		"254 queues":    func(r *tapRequest) { r.Queues = 254 },
		"hash":          func(r *tapRequest) { r.Options = "../../etc" },
		"via \"libvirt": func(r *tapRequest) { r.Via = nic.ViaLibvirt },
		"invalid MAC":   func(r *tapRequest) { r.MAC = "x" },
		"vlan":          func(r *tapRequest) { r.Port = "vlan=4095" },
		"bridge name":   func(r *tapRequest) { r.Bridge = "a/b" },
	} {
		r := good
		edit(&r)
		if _, err := r.spec(); !errors.Is(err, nic.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestAdoptedTap: only a tap that libvirt made for that MAC, and put nowhere else, becomes the NIC.
func TestAdoptedTap(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*rtnl.Link)
		ok   bool
	}{
		"libvirt's":     {func(*rtnl.Link) {}, true},
		"on our bridge": {func(l *rtnl.Link) { l.Master = 7 }, true},
		"not held":      {func(l *rtnl.Link) { l.Tun = &rtnl.Tun{Tap: true} }, false},
		"another MAC":   {func(l *rtnl.Link) { l.MAC = guestMAC }, false},
		"managed":       {func(l *rtnl.Link) { l.Alias = alias.Prefix + "vm=P3 nic=net0" }, false},
		"no tap":        {func(l *rtnl.Link) { l.Kind, l.Tun = "dummy", nil }, false},
	} {
		h := unprivileged(t).New(ask(byName(onBridge)), nic.PhaseStarting)
		s := &adoptedTap{placedTap{
			hostTap{m: h.m, spec: h.Spec, files: &h.Files},
			&bridgePlace{&rtnl.Link{Index: 7, Name: "br0"}},
		}}
		l := &rtnl.Link{
			Name: "vnet0", Kind: "tun", MAC: stablemac.HostMAC(guestMAC),
			Tun: &rtnl.Tun{Tap: true, Attached: true},
		}
		tc.edit(l)
		if err := s.adopt(l, nil); (err == nil) != tc.ok || err != nil && !errors.Is(err, nic.ErrExist) {
			t.Errorf("%s: %v", name, err)
		}
		if (s.link == l) != tc.ok {
			t.Errorf("%s: its link is %v", name, s.link)
		}
	}
}

// TestPrepareRefuses: what a guest that libvirt starts cannot have, before anything is read.
func TestPrepareRefuses(t *testing.T) {
	for want, edit := range map[string]func(*nic.Spec){
		"number of queues is not decided": func(s *nic.Spec) { s.Queues = nic.QueuesAuto },
		"options of a device":             func(s *nic.Spec) { s.DeviceOptions = map[string]string{"rombar": "0"} },
		"an ipvtap by name":               func(s *nic.Spec) { onLower(s); onIPVtap(s) },
	} {
		if _, err := unprivileged(t).Prepare(t.Context(), ask(edit)); !errors.Is(err, nic.ErrInvalid) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestMending: a dry run does nothing, and each action says what was done, with its error.
func TestMending(t *testing.T) {
	dev := inventory.Device{Link: &rtnl.Link{Name: "P2-net0"}, Want: nic.Record{VM: "P2", NIC: "net0"}}
	about := nic.Action{VM: "P2", NIC: "net0", Interface: "P2-net0"}
	with := func(edit func(*nic.Action)) nic.Action { a := about; edit(&a); return a }
	for _, dry := range []bool{false, true} {
		r, done := NewMending(nil, dry), 0
		fault := errors.New("fault")
		r.Note(dev, "left alone")
		r.Fail(dev, fault)
		r.Do(dev, "removed", func() error { done++; return nil })
		r.Do(dev, "mended", func() error { done++; return fault })
		broken, times := "fault", 2
		if dry {
			broken, times = "", 0
		}
		want := []nic.Action{
			with(func(a *nic.Action) { a.Action = "left alone" }),
			with(func(a *nic.Action) { a.Action, a.Error = "not looked into", "fault" }),
			with(func(a *nic.Action) { a.Action, a.Changed = "removed", true }),
			with(func(a *nic.Action) { a.Action, a.Changed, a.Error = "mended", true, broken }),
		}
		if diff := cmp.Diff(want, r.Actions); diff != "" || done != times {
			t.Errorf("dry %v: done %d times (-want +got):\n%s", dry, done, diff)
		}
	}
}
