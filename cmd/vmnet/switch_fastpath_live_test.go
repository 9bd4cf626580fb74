package main

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

// A fastRun is a switch between two hosts behind veths, which has no privilege any more.
type fastRun struct {
	*running
	middle, a, b *netns.NS
}

func runFast(t *testing.T, as []string, args ...string) *fastRun {
	t.Helper()
	nstest.RequireTCX(t)
	r := &fastRun{middle: nstest.New(t)}
	for _, n := range []string{"1", "2"} {
		ipIn(t, r.middle.Path(), "link", "add", "v"+n, "type", "veth", "peer", "name", "e"+n)
		ipIn(t, r.middle.Path(), "link", "set", "v"+n, "up")
	}
	ns := r.middle
	if as != nil { // it may not enter the netns
		as, ns = append([]string{"nsenter", "--net=" + ns.Path()}, as...), nil
	}
	r.running = runSwitch(t, ns, as, append([]string{"--user", "nobody", "--packet", "v1"}, args...)...)
	r.add("v2")
	r.a, r.b = seat(t, r.middle, "e1", "10.7.0.1"), seat(t, r.middle, "e2", "10.7.0.2")
	awaitAnswer(t, r.a, "10.7.0.2")
	return r
}

// add adds a port to the switch that runs in its sandbox.
func (r *fastRun) add(device string) {
	r.t.Helper()
	cmd := exec.Command("vmnet", "--netns", r.middle.Path(), "switch", "add-port", r.socket, "--packet", device)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
}

// ping sends pings, 2 ms apart, and returns how many were lost.
func (r *fastRun) ping(n int) (lost int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	var pings traffic.PingResult
	err := r.a.Do(func() (err error) {
		pings, err = traffic.SendPing(ctx, traffic.Ping{Addr: "10.7.0.2", Count: n, Timeout: 2 * time.Millisecond})
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return pings.Sent - pings.Received
}

// hasten sends pings until the kernel forwards most of them, and of their answers.
func (r *fastRun) hasten() {
	r.t.Helper()
	const n = 100
	nstest.Eventually(r.t, patience, "the fast path", func() bool {
		to, from := r.path("v1").Frames, r.path("v2").Frames
		r.ping(n)
		return r.path("v1").Frames >= to+n/2 && r.path("v2").Frames >= from+n/2
	})
}

func (r *fastRun) path(port string) vport.FastPath { return *r.ports()[port].Stats.FastPath }

func (r *fastRun) show() string {
	r.t.Helper()
	out, err := exec.Command("vmnet", "switch", "show", r.socket).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// hooked returns how many programs are at the TCX hook of a device.
func (r *fastRun) hooked(device string) (n int) {
	r.t.Helper()
	l, err := nstest.Handle(r.t, r.middle).LinkByName(device)
	if err != nil {
		r.t.Fatal(err)
	}
	err = r.middle.Do(func() error {
		found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			n = len(found.Programs)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// TestLiveSwitchFastPath has the kernel forward frames for a switch without privilege, which is
// upgraded, and then killed.
func TestLiveSwitchFastPath(t *testing.T) {
	forNobody(t)
	r := runFast(t, nil)
	r.powerless(nobody)
	r.hasten()
	if total := r.ports()["v1"].Stats.Total(); total.RxFrames < 100 || total.TxFrames < 100 {
		t.Errorf("100 pings and answers: %+v", total)
	}
	if out := r.show(); !strings.Contains(out, "fast path: at 2 of 2 packet ports") {
		t.Errorf("show: %s", out)
	}
	r.upgrade()
	r.hasten()
	if n := r.hooked("v1"); n != 1 {
		t.Errorf("%d programs at the TCX hook", n)
	}
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the killed switch leaves no program", func() bool { return r.hooked("v1") == 0 })
}

// TestLiveSwitchFastPathOff runs switches that have no fast path, and say why.
func TestLiveSwitchFastPathOff(t *testing.T) {
	forNobody(t)
	for what, c := range map[string]struct {
		as, args []string
		want     string
	}{
		"by the flag": {nil, []string{"--fast-path", "off"}, "fast path: off"},
		"without CAP_BPF": {
			[]string{"setpriv", "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin"},
			nil,
			"no fast path at v1: operation not permitted (needs CAP_BPF and CAP_NET_ADMIN where the port is opened)",
		},
	} {
		t.Run(what, func(t *testing.T) {
			r := runFast(t, c.as, c.args...)
			r.ping(20)
			if at := r.path("v1"); at.On || at.Why == "" || at.Frames > 0 {
				t.Errorf("%+v", at)
			}
			if out := r.show(); !strings.Contains(out, c.want) {
				t.Errorf("show says not %q: %s", c.want, out)
			}
			r.end()
		})
	}
}
