package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

// upgrade replaces the switch's process, and waits until the old one has ended. The test ends the
// new one, which is not its child, by its socket.
func (r *running) upgrade() {
	r.t.Helper()
	out, err := exec.Command("vmnet", "switch", "upgrade", r.socket, "-o", "json").Output()
	if err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	var got switchUpgraded
	if err := json.Unmarshal(out, &got); err != nil || got.PID == r.cmd.Process.Pid {
		r.t.Errorf("%s: %v", out, err)
	}
	r.says("handed over to process")
	// Not by cmd.Wait, which closes the pipe on which the new process goes on to report. That
	// process is adopted by the test's, so that it can be waited for as well.
	if state, err := r.cmd.Process.Wait(); err == nil && !state.Success() {
		r.t.Errorf("the old process ended with %v", state)
	}
	r.t.Cleanup(func() {
		_ = r.ask(func(ctx context.Context, c *control.Client) error { return c.Stop(ctx) })
	})
	if r.cmd.Process, err = os.FindProcess(got.PID); err != nil {
		r.t.Fatal(err)
	}
}

// listens checks that the kernel names the process that is the switch now.
func (r *running) listens() {
	r.t.Helper()
	err := r.ask(func(_ context.Context, c *control.Client) error {
		if pid, _ := c.Peer(); pid != r.cmd.Process.Pid {
			r.t.Errorf("process %d listens: want %d", pid, r.cmd.Process.Pid)
		}
		return nil
	})
	if err != nil {
		r.t.Error(err)
	}
}

// stop stops the switch by its socket.
func (r *running) stop() {
	r.t.Helper()
	if err := r.ask(func(ctx context.Context, c *control.Client) error { return c.Stop(ctx) }); err != nil {
		r.t.Error(err)
	}
}

// TestLiveSwitchUpgrade replaces the process of a switch while pings and a TCP connection pass its
// taps, and a packet port.
func TestLiveSwitchUpgrade(t *testing.T) {
	forNobody(t)
	ns := nstest.New(t)
	ipIn(t, ns.Path(), "link", "add", "up0", "type", "veth", "peer", "name", "lan0")
	ipIn(t, ns.Path(), "link", "set", "up0", "up")
	r := runSwitch(t, ns, nil, "--user", "nobody", "--tap", "a,vlan=3", "--tap", "b,queues=2,vlan=3", "--packet",
		"up0,vlan=3", "--tun", "c,address=10.7.0.4/24,vlan=3")
	_ = seat(t, ns, "c", "10.7.0.4") // in another netns: the next switch must find it there
	a, b, lan := seat(t, ns, "a", "10.7.0.1"), seat(t, ns, "b", "10.7.0.2"), seat(t, ns, "lan0", "10.7.0.3")
	awaitAnswer(t, a, "10.7.0.2")
	awaitAnswer(t, a, "10.7.0.3")

	const interval = 5 * time.Millisecond
	var pings traffic.PingResult
	ended := make(chan error, 2)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		ended <- a.Do(func() (err error) {
			pings, err = traffic.SendPing(ctx, traffic.Ping{Addr: "10.7.0.3", Count: 400, Timeout: interval})
			return err
		})
	}()
	go func() {
		var s *traffic.Server
		err := b.Do(func() (err error) { s, err = traffic.ServeTCP("10.7.0.2:0"); return err })
		if err == nil {
			defer s.Close()
			err = lan.Do(func() error { _, err := traffic.SendTCP(ctx, s.Addr, 400<<20); return err })
		}
		ended <- err
	}()
	for range 3 {
		r.upgrade()
		r.powerless(nobody)
		r.listens()
	}
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Logf("three upgrades: %d of %d pings without an answer within %v", pings.Sent-pings.Received, pings.Sent,
		interval)
	awaitAnswer(t, b, "10.7.0.3")
	awaitAnswer(t, b, "10.7.0.4")
	if p := r.ports()["a"]; p.Config.VLAN != 3 || p.Kind != control.Tap || p.Device != "a" {
		t.Errorf("%+v", p)
	}
	r.stop()
	awaitGone(t, a, "a")
	awaitGone(t, b, "b")
}

func TestServiceIn(t *testing.T) {
	const name = "/system.slice/system-vmnet\\x2dswitch.slice/vmnet-switch@sw0.service"
	const user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/"
	none := unit{user: -1}
	for groups, want := range map[string]unit{
		"0::" + name + "\n": {"vmnet-switch@sw0.service", -1},
		"3:cpu:/\n1:name=systemd:/system.slice/a.service/payload\n0::/\n": {"a.service", -1},
		"0::/user.slice/user-1000.slice/session-2.scope\n":                none,
		user + "sw.service\n":  {"sw.service", 1000},
		user + "vte-1.scope\n": {user: 1000},
		"":                     none,
	} {
		if got := serviceIn(groups); got.name != want.name || want.name != "" && got != want {
			t.Errorf("%q: %+v, want %+v", groups, got, want)
		}
	}
}

// TestLiveSwitchUpgradeOfUser upgrades a switch as its user, who has other groups.
func TestLiveSwitchUpgradeOfUser(t *testing.T) {
	forNobody(t)
	var as []string // the test's own user, unless that is root
	if os.Geteuid() == 0 {
		as = []string{"setpriv", "--reuid", "12345", "--regid", "12345", "--groups", "20,30"}
	}
	r := runSwitch(t, nil, as)
	argv := append(as, "vmnet", "switch", "upgrade", r.socket)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	r.says("handed over to process")
	if as != nil { // root, by whom the switch keeps its user's groups
		r.upgrade()
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
		if err != nil || !strings.Contains(string(status), "Groups:\t20 30 \n") {
			t.Errorf("%v, %s", err, status)
		}
	}
	r.stop()
}

// TestLiveSwitchUpgradeFails has the upgrade fail in the new process. The old one goes on.
func TestLiveSwitchUpgradeFails(t *testing.T) {
	forNobody(t)
	ns := nstest.New(t)
	r := runSwitch(t, ns, nil, "--tap", "a", "--tap", "b", "--tap", "c,queues=30")
	a, b := seat(t, ns, "a", "10.7.0.1"), seat(t, ns, "b", "10.7.0.2")
	_ = b
	upgrade := []string{"vmnet", "switch", "upgrade", r.socket}
	for want, argv := range map[string][]string{
		"permission denied": append([]string{"setpriv", "--reuid", "12345", "--clear-groups"}, upgrade...),
		"no room for files": append([]string{"prlimit", "--nofile=40:40"}, upgrade...),
	} {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v, %s: want %q", argv, err, out, want)
		}
		awaitAnswer(t, a, "10.7.0.2")
	}
	if out, err := exec.Command("vmnet", "switch", "upgrade", r.socket+"x").CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "no such switch runs") {
		t.Errorf("no switch: %v, %s", err, out)
	}
	r.end()
}
