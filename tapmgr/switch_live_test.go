package tapmgr_test

import (
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

const (
	guestA, guestB = "10.8.0.11", "10.8.0.12"
	behindTap      = "10.8.0.21"
	behindMAC      = "02:00:00:00:08:21" // also behind the next switch, where guests still know it
)

// addPort plugs a port of no guest's in.
func (s *userSwitch) addPort(p control.Port, files ...*os.File) {
	s.Helper()
	c, err := control.Dial(s.context(20*time.Second), s.path)
	if err == nil {
		defer c.Close()
		err = c.AddPort(s.context(20*time.Second), p, files...)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// uplink makes the cable of wire a packet port.
func (s *userSwitch) uplink() {
	s.Helper()
	s.wire()
	files, err := endpoint.PacketFiles(s.ns, "eth0")
	if err != nil {
		s.Fatal(err)
	}
	for _, f := range files {
		defer f.Close()
	}
	s.addPort(control.Port{Name: "eth0", Kind: control.Packet, Device: "eth0"}, files...)
}

// behind is a netns whose tap is a port of the switch.
func (s *userSwitch) behind() *netns.NS {
	s.Helper()
	ns := nstest.New(s)
	tap, err := tun.Create(ns, "lan0", false)
	if err != nil {
		s.Fatal(err)
	}
	defer tap.Close()
	s.addPort(control.Port{Name: "lan0", Kind: control.Tap, Device: "lan0"}, tap.Queues()...)
	s.ipIn(ns, "addr", "add", behindTap+"/24", "dev", "lan0")
	s.ipIn(ns, "link", "set", "lan0", "address", behindMAC, "up")
	return ns
}

// served starts a server of TCP and of UDP and returns where each of them listens.
func served(t testing.TB, ns *netns.NS, addr string) (tcp, udp string) {
	t.Helper()
	err := ns.Do(func() error {
		a, err := traffic.ServeTCP(addr + ":0")
		if err != nil {
			return err
		}
		t.Cleanup(a.Close)
		b, err := traffic.ServeUDP(addr + ":0")
		if err != nil {
			return err
		}
		t.Cleanup(b.Close)
		tcp, udp = a.Addr, b.Addr
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tcp, udp
}

// talk sends from a guest, and has each byte verified.
func talk(t testing.TB, ctx context.Context, g *guest, what, addr, tcp, udp string) {
	t.Helper()
	if _, err := g.Guest.Ping(ctx, addr); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if _, err := g.Guest.TCPSend(ctx, tcp, 4<<20); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if r, err := g.Guest.UDPSend(ctx, udp, 20, 1472); err != nil || r.Received < 19 {
		t.Errorf("%s: %+v, %v", what, r, err)
	}
}

// TestLiveSwitchGuestsTalk boots two guests and gives them NICs by sockets, by taps, and mixed, on
// which they talk to each other, to a tap port, and out of a packet port.
func TestLiveSwitchGuestsTalk(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.runSwitch()
	s.uplink()
	near := s.behind()
	a, b := h.booted(testvm.Config{CPUs: 2}), h.booted(testvm.Config{})
	ctx := h.context(2 * time.Minute)
	farTCP, farUDP := served(t, h.far, farAddr)
	nearTCP, nearUDP := served(t, near, behindTap)
	for _, by := range [][2]nic.By{{nic.BySocket, nic.BySocket}, {nic.ByTap, nic.ByTap}, {nic.ByTap, nic.BySocket}} {
		specA, specB := s.on(a, "net0", by[0]), s.on(b, "net0", by[1])
		specA.Switch.LockMAC = true
		if by[0] == nic.ByTap {
			specA.Queues = nic.QueuesAuto
		}
		nicA, nicB := h.attach(specA), h.attach(specB)
		if want := map[nic.By]int{nic.BySocket: 1, nic.ByTap: 2}[by[0]]; nicA.Queues != want ||
			nicA.Type != string(by[0]) {
			t.Errorf("%+v: want %s with %d queues", nicA, by[0], want)
		}
		if err := errors.Join(a.Guest.UseNIC(ctx, nicA.MAC, guestA+"/24"),
			b.Guest.UseNIC(ctx, nicB.MAC, guestB+"/24")); err != nil {
			t.Fatal(err)
		}
		tcp, err := b.Guest.TCPServe(ctx, guestB+":0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := b.Guest.UDPServe(ctx, guestB+":0")
		if err != nil {
			t.Fatal(err)
		}
		what := string(by[0] + " to " + by[1])
		talk(t, ctx, a, what, guestB, tcp, udp)
		talk(t, ctx, a, string(by[0])+" to a tap", behindTap, nearTCP, nearUDP)
		talk(t, ctx, b, string(by[1])+" to the uplink", farAddr, farTCP, farUDP)
		h.switchShown(a, nicA)
		h.detach(a, "net0")
		h.detach(b, "net0")
		h.nothingLeft(a, "net0")
		if ports := s.ports(); len(ports) != 2 {
			t.Errorf("%s: ports %+v: want the tap and the uplink", what, ports)
		}
	}
}

// switchShown demands that every verb knows the NIC.
func (h *host) switchShown(g *guest, nic nic.NIC) {
	h.Helper()
	nic.PID = g.Pid()
	if list, err := h.List(g.name); err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], nic) ||
		nic.State != "forwarding" || !nic.Switch || nic.Limits != "locked" {
		h.Errorf("list %+v, %v: want %+v, forwarding", list, err, nic)
	}
	details, err := h.Show(h.context(10*time.Second), g.name)
	if err != nil || len(details) != 1 {
		h.Fatalf("show %+v, %v", details, err)
	}
	d := details[0]
	if len(d.Learned) == 0 || d.Learned[0].MAC != nic.MAC || d.Counters.RxPackets == 0 || d.Counters.TxPackets == 0 ||
		d.Guest == nil || !d.Guest.Plugged {
		h.Errorf("show %+v: want its address learned, and traffic both ways", d)
	}
	if diff := h.check(); len(diff) != 0 {
		h.Errorf("check %+v", diff)
	}
	h.reconciled()
}

func TestLiveSwitchSameAgainAndAnother(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	g := h.empty()
	ctx := h.context(30 * time.Second)
	spec := s.on(g, "net0", nic.BySocket)
	h.attach(spec)
	again := s.on(g, "net0", nic.ByAuto)
	if res, err := h.Attach(ctx, again); err != nil || res.Changed || res.NIC.Type != nic.TypeSocket {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	for want, change := range map[string]func(*nic.Spec){
		"type is socket":    func(s *nic.Spec) { s.Switch.By = nic.ByTap },
		"port setting":      func(s *nic.Spec) { s.Port.Isolated = true },
		"limits":            func(s *nic.Spec) { s.Switch.Storm = nic.NoLimit },
		"on a switch is tr": func(s *nic.Spec) { s.Bridge, s.Switch = "br0", nil },
		"MTU is 1500":       func(s *nic.Spec) { s.MTU = 9000 },
	} {
		other := s.on(g, "net0", nic.BySocket)
		change(&other)
		if _, err := h.Attach(ctx, other); !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestLiveSwitchPortSettings: the switch gets the settings that are asked for.
func TestLiveSwitchPortSettings(t *testing.T) {
	eachBy(t, func(t *testing.T, s *userSwitch, by nic.By) {
		g := s.empty()
		spec := s.on(g, "net0", by)
		spec.Port = brport.Settings{VLAN: 10, Isolated: true}
		spec.Switch.Storm, spec.Switch.MaxAddresses, spec.Switch.LockMAC, spec.MTU = 100, nic.NoLimit, true, 9000
		nic := s.attach(spec)
		ports := s.ports()
		if len(ports) != 1 {
			t.Fatalf("ports %+v", ports)
		}
		p := ports[0]
		if p.Config.VLAN != 10 || !p.Config.Isolated || p.Config.Storm.Unknown != 100 || p.Config.MaxAddresses != 0 ||
			len(p.Config.MACs) != 1 || p.Stats.MTU != 9000 {
			t.Errorf("port %+v, %+v", p, p.Stats)
		}
		if nic.MTU != 9000 || nic.Port != "vlan:10;isolated" || nic.Limits != "locked;storm:100;addresses:off" {
			t.Errorf("NIC %+v", nic)
		}
		if diff := s.check(); len(diff) != 0 {
			t.Errorf("check %+v", diff)
		}
	})
}

// TestLiveSwitchCutOff: a forced detach needs no guest.
func TestLiveSwitchCutOff(t *testing.T) {
	eachBy(t, func(t *testing.T, s *userSwitch, by nic.By) {
		g := s.empty()
		s.attach(s.on(g, "net0", by))
		if _, err := s.tryDetach(g, 10*time.Second, true); err != nil {
			t.Fatal(err)
		}
		s.noPort()
	})
}
