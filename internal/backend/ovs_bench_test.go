package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"testing"
	"time"

	"vmnet/internal/bench"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// BenchmarkAttachOVS makes a tap and its port of Open vSwitch, by the steps of an attach and by
// hand: ip(8) and ovs-vsctl(8). Both wait until ovs-vswitchd has the port. Each is removed before
// the next turn.
func BenchmarkAttachOVS(b *testing.B) {
	nstest.RequireRoot(b)
	ns := nstest.New(b)
	o := ovstest.New(b, ns)
	o.StartSwitch()
	o.AddBridge("br-int")
	m, err := Open(ns)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	own := &bench.Way{Name: "vmnet", Do: func(i int) (time.Duration, error) { return attachOVS(b.Context(), m, o, i) }}
	hand := &bench.Way{Name: "ip and ovs-vsctl", Do: func(i int) (time.Duration, error) { return byHandOVS(ns, o, i) }}
	const turns = 20
	bench.WarmUp(b, turns, own, hand)
	bench.Turns(b, turns, own, hand)
	bench.Report(b, own, hand)
	b.ReportMetric(bench.Ratio(own, hand), "vmnet/hand")
}

func attachOVS(ctx context.Context, m *Maker, o *ovstest.OVS, i int) (took time.Duration, err error) {
	spec := nic.Spec{
		Target: nic.Target{VM: fmt.Sprintf("guest%d", i)}, NIC: "net0", Bridge: "br-int", OVSDB: o.Socket(),
		MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(i)}, Vhost: nic.VhostOff,
	}.WithDefaults()
	start := time.Now()
	h := m.New(spec, nic.PhaseAttaching)
	if err := h.PlanInterface(ctx); err != nil {
		return 0, err
	}
	if err := h.PlanDevice(1); err != nil {
		return 0, err
	}
	steps, err := h.HostSteps(0)
	if err == nil {
		err = step.Run(ctx, steps, nil)
	}
	took = time.Since(start)
	if err == nil {
		err = step.Undo(ctx, steps)
	}
	return took, errors.Join(err, h.Close())
}

func byHandOVS(ns *netns.NS, o *ovstest.OVS, i int) (time.Duration, error) {
	tap, db := fmt.Sprint("hand", i), "--db=unix:"+o.Socket()
	run := func(argv ...string) error {
		cmd := exec.Command(argv[0], argv[1:]...)
		return ns.Do(func() error {
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w: %s", argv, err, out)
			}
			return nil
		})
	}
	start := time.Now()
	err := run("ip", "tuntap", "add", "dev", tap, "mode", "tap")
	if err == nil {
		err = run("ip", "link", "set", tap, "up")
	}
	if err == nil {
		err = run("ovs-vsctl", db, "add-port", "br-int", tap)
	}
	took := time.Since(start)
	return took, errors.Join(err, run("ovs-vsctl", db, "del-port", "br-int", tap),
		run("ip", "tuntap", "del", "dev", tap, "mode", "tap"))
}
