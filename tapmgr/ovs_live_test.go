package tapmgr_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/nstest"
	"vmnet/internal/ovs"
	"vmnet/internal/ovsdb"
	"vmnet/internal/ovstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr/nic"
)

// ovsHost is a host on which Open vSwitch runs with bridge br-int, which forwards in user space.
type ovsHost struct {
	*host
	*ovstest.OVS
}

func newOVSHost(t *testing.T) *ovsHost {
	t.Helper()
	t.Parallel()
	h := &ovsHost{host: newUserHost(t)}
	h.OVS = ovstest.New(t, h.ns)
	h.StartSwitch()
	h.AddBridge("br-int")
	h.UseDatabases(h.Socket())
	return h
}

func (h *ovsHost) spec(g *fakeGuest, nicID string) nic.Spec {
	return nic.Spec{
		Target: nic.Target{VM: g.Name}, NIC: nicID, Bridge: "br-int", OVSDB: h.Socket(), Vhost: nic.VhostOff,
	}
}

// ports returns the ports of br-int, without its own.
func (h *ovsHost) ports() []string { return strings.Fields(h.Vsctl("list-ports", "br-int")) }

// noRows demands that neither ports nor interfaces are left.
func (h *ovsHost) noRows(when string) {
	h.Helper()
	if left := h.Vsctl("--bare", "--columns=name", "list", "Interface"); left != "br-int" {
		h.Errorf("%s: interfaces %q are left", when, left)
	}
}

// column returns a column of a port or interface.
func (h *ovsHost) column(table, name, column string) string {
	h.Helper()
	return h.Vsctl("get", table, name, column)
}

// passes demands that frames which the bridge floods reach the NIC's tap.
func (h *ovsHost) passes(g *fakeGuest, nicID string) {
	h.Helper()
	link := nstest.Handle(h, h.ns)
	br, err := link.LinkByName("br-int")
	if err == nil {
		err = link.LinkSetUp(br)
	}
	if err != nil {
		h.Fatal(err)
	}
	out := nstest.PacketSocket(h, h.ns, br.Attrs().Index)
	in := nstest.PacketSocket(h, h.ns, g.tap(nicID).Index) // which sees what is sent to the tap
	frame := append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5"), make([]byte, 50)...)
	got := make([]byte, 2048)
	nstest.Eventually(h, 20*time.Second, "frames reach "+g.link(nicID), func() bool {
		if _, err := out.Write(frame); err != nil && !errors.Is(err, syscall.ENETDOWN) {
			h.Fatal(err)
		}
		if err := in.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			h.Fatal(err)
		}
		n, err := in.Read(got)
		return err == nil && bytes.Contains(got[:n], frame[:14])
	})
}

// mac returns the guest's address of a NIC.
func (g *fakeGuest) mac(nicID string) net.HardwareAddr {
	g.h.Helper()
	r, _ := nic.ParseRecord(g.tap(nicID).Alias)
	return r.MAC
}

// differs demands of check that exactly these properties differ, which reconcile mends.
func (h *ovsHost) differs(want ...string) {
	h.Helper()
	checked, err := h.Check(h.context(20 * time.Second))
	var found []string
	for _, d := range checked.Differences {
		if found = append(found, d.What); d.MendedBy != nic.MendReconcile {
			h.Errorf("%+v is not for reconcile", d)
		}
	}
	if err != nil || !slices.Equal(found, want) {
		h.Errorf("check: %+v, %v, want %q", checked, err, want)
	}
}

// mended has reconcile mend what differs, and demands that nothing does then.
func (h *ovsHost) mended() {
	h.Helper()
	actions, err := h.Reconcile(h.context(20*time.Second), false)
	for _, a := range actions {
		if a.Error != "" {
			h.Errorf("%+v", a)
		}
	}
	if err != nil || len(actions) == 0 {
		h.Errorf("reconcile: %+v, %v", actions, err)
	}
	h.differs()
}

// TestLiveOVS attaches to a bridge of Open vSwitch and follows the NIC's row through all verbs.
func TestLiveOVS(t *testing.T) {
	h := newOVSHost(t)
	g := h.fake(qmptest.Config{})
	spec := h.spec(g, "net0")
	spec.Port = brport.Settings{VLAN: 7, Isolated: true}
	res, err := g.tryAttach(spec)
	if err != nil || !res.Changed || res.NIC.Type != nic.TypeOVS || res.NIC.State != "forwarding" ||
		res.NIC.IfaceID != nic.DefaultIfaceID(g.Name, "net0") || !slices.ContainsFunc(res.Notices, func(n string) bool {
		return strings.Contains(n, "no offloads")
	}) {
		t.Fatalf("got %+v, %v", res, err)
	}
	place, err := h.OpenCapture(h.context(20*time.Second), g.Name, "net0")
	if err != nil || place.Reversed {
		t.Errorf("captured at %+v, %v: a tap receives what the guest sends", place, err)
	} else if err := place.Socket.Close(); err != nil {
		t.Error(err)
	}
	name := g.link("net0")
	if g.tap("net0").Tun.VnetHdr {
		t.Error("the tap has a vnet header, of which a bridge in user space completes nothing")
	}
	for column, want := range map[string]string{"tag": "7", "vlan_mode": "access", "protected": "true"} {
		if found := h.column("Port", name, column); found != want {
			t.Errorf("%s: %s, want %s", column, found, want)
		}
	}
	if ids := h.column("Interface", name, "external_ids"); !strings.Contains(ids, `iface-id="`+res.NIC.IfaceID) ||
		!strings.Contains(ids, `attached-mac="`+res.NIC.MAC) || !strings.Contains(ids, "iface-status=active") {
		t.Errorf("external ids %s", ids)
	}
	details, err := h.Show(h.context(20*time.Second), g.Name)
	if err != nil || len(details) != 1 || details[0].Bridge != "br-int" || details[0].OVS == nil ||
		details[0].OVS.OFPort < 1 || details[0].OVS.Datapath != ovs.Userspace {
		t.Errorf("show: %+v, %v", details, err)
	}
	h.allForward(1)
	if again, err := g.tryAttach(spec); err != nil || again.Changed {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	other := spec
	other.IfaceID = "g1"
	if _, err := g.tryAttach(other); !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), "iface-id") {
		t.Errorf("another iface-id: %v", err)
	}

	// What somebody changes in the database is a difference, which reconcile mends.
	h.Vsctl("set", "Port", name, "tag=9", "--", "set", "Interface", name, "external_ids:iface-id=x")
	h.differs("port", "ids")
	h.mended()
	h.Vsctl("del-port", name)
	h.differs("bridge")
	if state := g.state(); state != nic.NoBridge {
		t.Errorf("state %s", state)
	}
	h.mended()
	set := spec
	set.Port = brport.Settings{Trunk: []brport.VLANRange{{First: 5, Last: 6}}, Native: 7}
	set.MAC, set.Model, set.Queues, set.IfaceID = g.mac("net0"), nic.DefaultModel, 1, "g1"
	edit := func(nic.Spec) (nic.Spec, error) { return set, nil }
	if _, err := h.Set(h.context(20*time.Second), set.Target, "net0", edit); err != nil {
		t.Fatal(err)
	}
	tag, trunks := h.column("Port", name, "tag"), h.column("Port", name, "trunks")
	if ids := h.column("Interface", name, "external_ids"); tag != "7" || trunks != "[5, 6]" ||
		!strings.Contains(ids, "iface-id=g1") {
		t.Errorf("after set: tag %s, trunks %s, %s", tag, trunks, ids)
	}
	h.allForward(1)
	set.Rates.Up.Bits = 1e6
	if _, err := h.Set(h.context(20*time.Second), set.Target, "net0", edit); !errors.Is(err, nic.ErrInvalid) ||
		!strings.Contains(err.Error(), "--rate-up") {
		t.Errorf("a limit that would have no effect: %v", err)
	}
	if _, err := g.tryDetach("net0", 20*time.Second, true); err != nil {
		t.Fatal(err)
	}
	g.has()
	h.noLink(name)
	h.noRows("after detach")
	if _, err := g.tryAttach(g.spec("net1")); err != nil { // Linux's bridge beside it
		t.Error(err)
	}
}

// TestLiveOVSRefusals: what a bridge of Open vSwitch cannot do is refused before anything is made.
func TestLiveOVSRefusals(t *testing.T) {
	h := newOVSHost(t)
	g := h.fake(qmptest.Config{})
	for words, change := range map[string]func(*nic.Spec){
		"--hairpin":     func(s *nic.Spec) { s.Port.Hairpin = true },
		"--rate-up":     func(s *nic.Spec) { s.Rates.Up.Bits = 1e6 },
		"no bridge of":  func(s *nic.Spec) { s.Bridge = "br0" },
		"nobody":        func(s *nic.Spec) { s.OVSDB = h.Dir + "/none" },
		"no Linux brid": func(s *nic.Spec) { s.Bridge = "ovs-netdev" },
	} {
		spec := h.spec(g, "net0")
		change(&spec)
		if _, err := g.tryAttach(spec); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
		h.noLink(g.link("net0"))
	}
}

// TestLiveOVSGuestKilled: the row of a killed guest outlives its tap, and in user space Open
// vSwitch would pass nothing to a new tap of that name by it.
func TestLiveOVSGuestKilled(t *testing.T) {
	h := newOVSHost(t)
	name := h.name("P2")
	g := &fakeGuest{qmptest.Start(h, qmptest.Config{Name: name}), h.host}
	for range 2 {
		if _, err := g.tryAttach(h.spec(g, "net0")); err != nil {
			t.Fatal(err)
		}
		h.passes(g, "net0")
		g.Kill()
		h.gone(g.link("net0"))
		if ports := h.ports(); !slices.Equal(ports, []string{g.link("net0")}) {
			t.Fatalf("ports %q: this test is about a row that is left", ports)
		}
		h.differs("port")
		g = &fakeGuest{qmptest.Start(h, qmptest.Config{Name: name}), h.host}
	}
	if res, err := g.tryDetach("net0", 20*time.Second, false); err != nil || !res.Changed {
		t.Errorf("a detach of the NIC that is gone: %+v, %v", res, err)
	}
	h.noRows("after detach")
}

// TestLiveOVSFaultAtEveryStep fails, and kills, attach and detach at each step: nothing is left
// then, after a kill once reconcile has run.
func TestLiveOVSFaultAtEveryStep(t *testing.T) {
	h := newOVSHost(t)
	g := h.fake(qmptest.Config{})
	spec := h.spec(g, "net0")
	names := h.stepNames(spec)
	if !slices.Contains(names, "port") || !slices.Contains(names, "up") {
		t.Fatalf("steps %q", names)
	}
	h.faultAtEveryStep(spec, func() {
		h.Helper()
		g.has()
		h.gone(g.link("net0"))
		h.noRows("after a fault")
	})
	for _, name := range names {
		g.killedAttach(spec, name)
		if _, err := h.Reconcile(h.context(20*time.Second), false); err != nil {
			t.Fatal(err)
		}
		if list, err := h.List(g.Name); err != nil {
			t.Fatal(err)
		} else if len(list) == 1 { // it was plugged by then
			h.allForward(1)
			if _, err := g.tryDetach("net0", 20*time.Second, true); err != nil {
				t.Fatal(err)
			}
		}
		h.gone(g.link("net0"))
		h.noRows("killed at " + name)
	}
	for _, force := range []bool{false, true} {
		if _, err := g.tryAttach(spec); err != nil {
			t.Fatal(err)
		}
		detach := func() error { _, err := g.tryDetach("net0", 20*time.Second, force); return err }
		for _, name := range h.stepNamesOf(detach) {
			h.at(name, func(do func() error) error { return errors.Join(do(), errFault) })
			if err := detach(); !errors.Is(err, errFault) {
				t.Errorf("%s: %v", name, err)
			}
			h.Run = nil
			if _, err := g.tryDetach("net0", 20*time.Second, true); err != nil {
				t.Fatal(err)
			}
			h.noRows("detach after a fault at " + name)
			if _, err := g.tryAttach(spec); err != nil {
				t.Fatal(err)
			}
		}
		if err := detach(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLiveOVSForeignNIC: a tap that libvirt has put on a bridge of Open vSwitch is shown as such a
// port, and left alone.
func TestLiveOVSForeignNIC(t *testing.T) {
	h := newOVSHost(t)
	h.persistentTaps("vnet7")
	h.holdTap("vnet7")
	h.ip("link", "set", "vnet7", "up")
	h.Vsctl("add-port", "br-int", "vnet7", "tag=7", "--", "set", "Interface", "vnet7", "external_ids:iface-id=g7")
	links, err := h.Host().Foreign(os.Getpid())
	if err != nil || len(links) != 1 {
		t.Fatalf("%+v, %v", links, err)
	}
	h.Host().AskOVS(h.context(20*time.Second), links, "/nosuch", h.Socket())
	l := links[0]
	if l.Source != "br-int" || l.State != "forwarding" || l.Port.VLAN != 7 || l.OVS == nil ||
		l.OVS.IfaceID != "g7" || l.OVSDB != h.Socket() {
		t.Errorf("%+v", l)
	}
	h.differs()
	if actions, err := h.Reconcile(h.context(20*time.Second), false); err != nil || len(actions) > 0 {
		t.Errorf("reconcile: %+v, %v", actions, err)
	}
	if ports := h.ports(); !slices.Equal(ports, []string{"vnet7"}) {
		t.Errorf("ports %q", ports)
	}
}

// TestLiveOVSForeignRow: a port that vmnet did not make is named and left alone.
func TestLiveOVSForeignRow(t *testing.T) {
	h := newOVSHost(t)
	g := h.fake(qmptest.Config{})
	name := g.link("net0")
	h.Vsctl("--no-wait", "add-port", "br-int", name)
	foreign := func(when string) {
		h.Helper()
		_, err := g.tryAttach(h.spec(g, "net0"))
		if !errors.Is(err, ovs.ErrTaken) || !strings.Contains(err.Error(), name+" of br-int") ||
			!strings.Contains(err.Error(), "del-port "+name) {
			t.Errorf("%s: %v", when, err)
		}
		h.noLink(name)
		if actions, err := h.Reconcile(h.context(20*time.Second), false); err != nil || len(actions) > 0 {
			t.Errorf("reconcile: %+v, %v", actions, err)
		}
		if ports := h.ports(); !slices.Equal(ports, []string{name}) {
			t.Errorf("%s: ports %q", when, ports)
		}
	}
	foreign("a port that somebody else has made")
	owner := ovs.Owner{VM: g.Name, NIC: "net0", Place: ovs.Here(1), Link: 7}
	owner.Machine = "another"
	h.Vsctl("--no-wait", "set", "Port", name, fmt.Sprintf("external_ids:vmnet=%q", owner))
	foreign("a port of another machine")

	// A row of this machine's former boot is not foreign, whatever its numbers say.
	owner = ovs.Owner{VM: g.Name, NIC: "net0", Place: ovs.Here(1), Link: 1}
	owner.Boot = "former"
	h.Vsctl("--no-wait", "set", "Port", name, fmt.Sprintf("external_ids:vmnet=%q", owner))
	if _, err := g.tryAttach(h.spec(g, "net0")); err != nil {
		t.Error(err)
	}
	h.allForward(1)
}

// TestLiveOVSDoesNotAnswer: an attach ends with its context, whatever the daemons do, and leaves
// nothing.
func TestLiveOVSDoesNotAnswer(t *testing.T) {
	h := newOVSHost(t)
	g := h.fake(qmptest.Config{})
	spec := h.spec(g, "net0")
	tries := func(when string, want error, words string, waits func() bool) {
		h.Helper()
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := h.Attach(ctx, spec)
			done <- err
		}()
		if waits != nil {
			nstest.Eventually(t, 20*time.Second, when, waits)
			cancel(errFault)
		}
		if err := <-done; !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", when, err)
		}
		cancel(nil)
		h.gone(g.link("net0"))
	}
	h.PauseSwitch()
	tries("ovs-vswitchd is paused", errFault, "port: ", func() bool {
		return h.column("Open_vSwitch", ".", "next_cfg") != h.column("Open_vSwitch", ".", "cur_cfg")
	})
	h.ResumeSwitch()
	h.noRows("after its undo")
	h.Pause()
	tries("ovsdb-server is paused", errFault, "", func() bool {
		return nstest.Waiting("internal/ovsdb.(*stream).next") > 0
	})
	if list, err := h.List(""); err != nil || len(list) > 0 {
		t.Errorf("list: %+v, %v", list, err)
	}
	h.Resume()
	h.StopDatabase()
	tries("ovsdb-server is dead", ovsdb.ErrNotRunning, "openvswitch-switch", nil)
	if actions, err := h.Reconcile(h.context(20*time.Second), false); err != nil || len(actions) > 0 {
		t.Errorf("reconcile: %+v, %v", actions, err)
	}
	h.StartDatabase()
	h.noRows("after the restart")
	if _, err := g.tryAttach(spec); err != nil {
		t.Fatal(err)
	}

	// A NIC that is there is listed though nobody says anything of its port.
	h.Pause()
	if state := g.state(); state != nic.Unknown {
		t.Errorf("state %s", state)
	}
	h.Resume()
	h.allForward(1)
}
