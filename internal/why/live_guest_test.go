package why

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"vmnet/bridge/portsec"
	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveFaultsOfGuests makes faults of a real guest and its QEMU.
func TestLiveFaultsOfGuests(t *testing.T) {
	testvm.Require(t)
	s := newHost(t)
	s.bridges()
	s.vm = testvm.StartT(t, testvm.Config{Name: s.name})
	n := s.plug(nic.Spec{NIC: "net0", Bridge: "br0"})
	// While the guest's links change, its kernel may refuse to list them.
	nstest.Eventually(s, patience, "the guest uses its NIC", func() bool {
		return s.vm.Guest.UseNIC(s.ctx(), n.MAC, "10.0.0.11/24") == nil
	})
	if _, err := s.vm.Guest.Ping(s.ctx(), "10.0.0.1"); err != nil { // from now on the host knows its address
		t.Fatal(err)
	}
	s.well("net0", "outside", "tcp:443")
	s.probed()
	do := func(command string, args any) func(*site) {
		return func(s *site) {
			c, err := qmp.Dial(s.ctx(), s.vm.QMP)
			if err == nil {
				err = c.Execute(s.ctx(), command, args, nil)
				_ = c.Close()
			}
			if err != nil {
				s.Fatal(err)
			}
		}
	}
	link := func(up bool) func(*site) { return do("set_link", map[string]any{"name": "vmnet-net0", "up": up}) }
	signal := func(sig syscall.Signal) func(*site) {
		return func(s *site) {
			if err := s.vm.Signal(sig); err != nil {
				s.Fatal(err)
			}
		}
	}
	driver := func(verb string) func(*site) {
		return func(s *site) {
			script := "for d in /sys/bus/virtio/devices/*; do case $(cat $d/modalias) in virtio:d00000001*) " +
				"echo ${d##*/} >/sys/bus/virtio/drivers/virtio_net/" + verb + ";; esac; done"
			if _, err := s.vm.Guest.Exec(s.ctx(), "sh", "-c", script); err != nil {
				s.Fatal(err)
			}
		}
	}
	s.breaks([]broken{
		{
			name: "guest without link", do: link(false), undo: link(true), where: "guest VM/net0",
			why: "the guest's driver sees no carrier",
		},
		{
			name: "paused", do: do("stop", nil), undo: do("cont", nil), where: "guest VM/net0",
			why: "its VMM is in state paused",
		},
		{
			name: "VMM stopped by a signal", do: signal(syscall.SIGSTOP), undo: signal(syscall.SIGCONT),
			where: "guest VM/net0", why: "of its VMM is stopped by a signal",
		},
		{
			name: "no driver in the guest", do: driver("unbind"), undo: driver("bind"), where: "guest VM/net0",
			why: "no driver of the guest",
		},
	})
	s.set("net0", func(n *nic.Spec) { n.Security.Checks = portsec.MAC })
	defer s.set("net0", func(n *nic.Spec) { n.Security.Checks = 0 })
	device, err := s.vm.Guest.WaitNIC(s.ctx(), s.macs["net0"])
	if err != nil {
		t.Fatal(err)
	}
	sends := func(from string) func(*site) {
		return func(s *site) {
			if err := s.vm.Guest.SetMAC(s.ctx(), device.Name, from); err != nil {
				s.Fatal(err)
			}
		}
	}
	s.breaks([]broken{{
		name: "spoofed MAC", do: sends("52:54:00:99:99:99"), undo: sends(s.macs["net0"]), where: "port security",
		why: "the guest sends from 52:54:00:99:99:99",
	}})
	s.well("net0", "outside", "tcp:443")
}

// look sends probes to net0.
func (s *site) look() *Walk {
	s.Helper()
	return s.lookAt("net0")
}

// lookAt sends probes to a NIC.
func (s *site) lookAt(id string) *Walk {
	s.Helper()
	q := Request{Manager: s.m, NS: s.ns, Dir: s.dir, VM: s.name, NIC: id, To: "outside", Frame: Frame{Kind: ICMP}}
	f, err := Read(s.ctx(), q)
	if err != nil {
		s.Fatal(err)
	}
	w := Follow(f)
	if w.Live, err = Live(s.ctx(), q, f); err != nil {
		s.Fatal(err)
	}
	return w
}

// probed demands that the guest answers probes, and that the walk says what drops them, which it
// cannot see otherwise.
func (s *site) probed() {
	s.Helper()
	verdicts := func(w *Walk) (found []string) {
		for _, step := range w.Live {
			if strings.HasPrefix(step.Where, "ARP") || strings.HasPrefix(step.Where, "echo") {
				found = append(found, string(step.Verdict))
			}
		}
		return found
	}
	var w *Walk
	nstest.Eventually(s, patience, "the guest answers all probes", func() bool {
		w = s.look()
		return slices.Equal(verdicts(w), []string{"passes", "passes", "passes"}) && w.Stopped() == nil
	})
	s.Log(w.Text(80, nil))
	s.sh("nft 'add table bridge b; add chain bridge b i { type filter hook input priority 0; policy accept; }; " +
		"add rule bridge b i meta protocol arp ether saddr " + s.macs["net0"] + " drop'")
	w = s.look()
	s.Log(w.Text(80, nil))
	stop := w.Stopped()
	if stop == nil || stop.Where != "ARP at br0" || !strings.Contains(stop.Why, "does not answer 3 requests") {
		s.Errorf("ARP is dropped on its way to br0:\n%s", w.Text(80, nil))
	} else if !strings.Contains(stop.Why, "NETFILTER_DROP") && step(w.Live, "drop reasons") == nil {
		s.Errorf("the kernel's reason is missing:\n%s", w.Text(80, nil))
	}
	s.sh("nft delete table bridge b")
}
