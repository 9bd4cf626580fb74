package tapmgr_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// fakeOnSwitch runs a test with a fake guest on a real switch, for each way between them.
func fakeOnSwitch(t *testing.T, test func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec)) {
	for _, by := range bothBys {
		t.Run(string(by), func(t *testing.T) {
			h, g := fakeTest(t)
			s := h.runSwitch()
			spec := g.spec("net0")
			spec.Bridge, spec.Switch = "", &nic.Switch{Name: s.path, By: by}
			test(t, s, g, spec)
		})
	}
}

// port returns the switch's only port.
func (s *userSwitch) port() control.Port {
	s.Helper()
	ports := s.ports()
	if len(ports) != 1 {
		s.Fatalf("ports %+v, want one", ports)
	}
	return ports[0]
}

// TestSwitchAttachAndDetach: the port has what was asked for, all verbs know the NIC, and a detach
// leaves neither port nor device.
func TestSwitchAttachAndDetach(t *testing.T) {
	fakeOnSwitch(t, func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
		spec.Port = brport.Settings{VLAN: 10, Isolated: true}
		spec.Switch.LockMAC, spec.Switch.Storm = true, 100
		made := s.attach(spec)
		p := s.port()
		r, ok := nic.ParseRecord(p.Label)
		if !ok || r.VM != g.Name || r.NIC != "net0" || r.Phase != nic.PhasePlugged ||
			p.Holder != g.PID && spec.Switch.By == nic.BySocket {
			t.Errorf("port %+v", p)
		}
		if p.Config.VLAN != 10 || !p.Config.Isolated || len(p.Config.MACs) != 1 || p.Config.Storm.Unknown != 100 {
			t.Errorf("settings %+v", p.Config)
		}
		g.has("net0")
		if list, err := s.List(""); err != nil || len(list) != 1 || list[0].PID != g.PID || !list[0].Switch ||
			list[0].State != "forwarding" {
			t.Errorf("list %+v, %v", list, err)
		}
		details, err := s.Show(s.context(10*time.Second), g.Name)
		if err != nil || len(details) != 1 || details[0].Socket != s.path || details[0].Guest == nil ||
			!details[0].Guest.Plugged {
			t.Errorf("show %+v, %v", details, err)
		}
		if got := s.check(); len(got) > 0 {
			t.Errorf("check %+v", got)
		}
		s.reconciled()
		if res, err := g.tryAttach(spec); err != nil || res.Changed || res.NIC.Interface != made.Interface {
			t.Errorf("the same again: %+v, %v", res, err)
		}
		other := spec
		other.Switch = &nic.Switch{Name: s.path, By: spec.Switch.By, MaxAddresses: 3}
		if _, err := g.tryAttach(other); !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), "limits") {
			t.Errorf("another: %v", err)
		}
		if res, err := g.tryDetach("net0", 20*time.Second, false); err != nil || !res.Changed {
			t.Errorf("detach: %+v, %v", res, err)
		}
		s.noPort()
		g.nothingLeft()
	})
}

// TestSwitchFaultAtEachStep: whatever step fails, the switch has no port and the guest no device.
func TestSwitchFaultAtEachStep(t *testing.T) {
	fakeOnSwitch(t, func(_ *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
		s.faultAtEveryStep(spec, func() {
			s.noPort()
			g.nothingLeft()
		})
		s.attach(spec)
		g.has("net0")
	})
}

// TestSwitchThatEnds: once it runs again, reconcile joins a tap to it, and the same attach replaces
// a socket.
func TestSwitchThatEnds(t *testing.T) {
	fakeOnSwitch(t, func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
		s.attach(spec)
		s.kill()
		if state := g.state(); state != nic.NoSwitch {
			t.Errorf("state %q", state)
		}
		if got := s.check(); len(got) != 1 || got[0].What != "switch" {
			t.Errorf("check %+v", got)
		}
		s.start()
		if spec.Switch.By == nic.ByTap {
			if actions, err := s.Reconcile(s.context(20*time.Second), false); err != nil ||
				len(actions) != 1 || !actions[0].Changed {
				t.Errorf("reconcile %+v, %v", actions, err)
			}
		} else if res, err := g.tryAttach(spec); err != nil || !res.Changed {
			t.Errorf("the same again: %+v, %v", res, err)
		}
		if p := s.port(); p.Label == "" {
			t.Errorf("port %+v", p)
		}
		g.has("net0")
		if state := g.state(); state != "forwarding" {
			t.Errorf("then state %q", state)
		}
		if got := s.check(); len(got) > 0 {
			t.Errorf("then check %+v", got)
		}
	})
}

// TestSwitchThatIsSilent: its NIC is listed as unknown, and nothing is taken from it.
func TestSwitchThatIsSilent(t *testing.T) {
	fakeOnSwitch(t, func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
		s.attach(spec)
		s.signal(syscall.SIGSTOP)
		if state := g.state(); state != nic.Unknown {
			t.Errorf("state %q", state)
		}
		checked, err := s.Check(s.context(20 * time.Second))
		if err != nil || !slices.ContainsFunc(checked.Notices, func(text string) bool {
			return strings.Contains(text, "no answer within")
		}) {
			t.Errorf("check %+v, %v", checked, err)
		}
		s.signal(syscall.SIGCONT)
		s.asksAgain()
		if state := g.state(); state != "forwarding" {
			t.Errorf("then state %q", state)
		}
		g.has("net0")
	})
}

// TestSwitchGuestThatEnds: the switch removes the port of a process that has ended.
func TestSwitchGuestThatEnds(t *testing.T) {
	fakeOnSwitch(t, func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
		s.attach(spec)
		g.Kill()
		s.noPort()
		nstest.Eventually(t, 20*time.Second, "it is not listed", func() bool {
			list, err := s.List("")
			return err == nil && len(list) == 0
		})
		s.reconciled()
	})
}

// TestSwitchAttachKilled: reconcile makes well what a killed attach has left in guest and switch.
func TestSwitchAttachKilled(t *testing.T) {
	for _, step := range []string{"getfd vmnet-net0-q0", "device_add vmnet-net0"} {
		t.Run(strings.Fields(step)[0], func(t *testing.T) {
			fakeOnSwitch(t, func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
				o := order{Spec: spec, KillAt: step, After: true, Switches: []string{s.path}}
				if out, err := s.command(o).CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
					t.Fatalf("%v: %s", err, out)
				}
				s.settled()
				if got := s.check(); len(got) > 0 {
					t.Errorf("check %+v", got)
				}
				if strings.HasPrefix(step, "getfd") {
					s.noPort()
					g.nothingLeft()
				} else {
					s.port()
					g.has("net0")
				}
			})
		})
	}
}

// TestSwitchForce: a forced detach needs no guest.
func TestSwitchForce(t *testing.T) {
	fakeOnSwitch(t, func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
		s.attach(spec)
		g.Pause()
		if res, err := g.tryDetach("net0", time.Second, true); err == nil || !res.Changed {
			t.Errorf("%+v, %v", res, err)
		}
		if spec.Switch.By == nic.BySocket {
			s.noPort()
		} else if l := g.tap("net0"); l.Up {
			t.Errorf("the tap is still up: %+v", l)
		}
		g.Resume()
		if _, err := g.tryDetach("net0", 20*time.Second, false); err != nil {
			t.Error(err)
		}
		g.nothingLeft()
	})
}

// TestSwitchSettingsAreMended: somebody has given the port other settings.
func TestSwitchSettingsAreMended(t *testing.T) {
	fakeOnSwitch(t, func(t *testing.T, s *userSwitch, g *fakeGuest, spec nic.Spec) {
		spec.Port.Isolated = true
		s.attach(spec)
		was := s.port().Config
		c, err := control.Dial(s.context(20*time.Second), s.path)
		if err != nil {
			t.Fatal(err)
		}
		err = c.SetPort(s.context(20*time.Second), s.port().Name, vport.Config{})
		if err = errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		if got := s.check(); len(got) != 1 || got[0].What != "settings" || got[0].MendedBy != nic.MendReconcile {
			t.Errorf("check %+v", got)
		}
		if res, err := g.tryAttach(spec); err != nil || !res.Changed {
			t.Errorf("the same again: %+v, %v", res, err)
		}
		if p := s.port(); !reflect.DeepEqual(p.Config, was) {
			t.Errorf("port %+v, want %+v", p, was)
		}
	})
}
