package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

const switchUnit = "vmnet-switch@sw0.service"

// unitSwitch is a switch that a systemd runs by the unit that is installed.
type unitSwitch struct {
	*running
	m *manager
}

// startUnit starts it with options of run, and with further settings of the service.
func startUnit(t *testing.T, ns *netns.NS, options string, settings ...string) *unitSwitch {
	t.Helper()
	forNobody(t)
	text, err := os.ReadFile("../../docs/systemd/vmnet-switch@.service")
	if err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("vmnet")
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	m := startManager(t, ns, map[string]string{
		"vmnet-switch@.service": strings.ReplaceAll(string(text), "@PREFIX@/bin/vmnet", program),
		// sysinit.target would start udev and more.
		"vmnet-switch@.service.d/test.conf": "[Unit]\nDefaultDependencies=no\n[Service]\n" +
			"Environment=\"OPTIONS=" + options + "\" " + sandboxEnv + "=strict GORACE=atexit_sleep_ms=0\n" +
			"BindReadOnlyPaths=" + program + "\nStandardOutput=append:" + log + "\nStandardError=inherit\n" +
			strings.Join(settings, "\n"),
	})
	t.Cleanup(func() {
		if text, err := os.ReadFile(log); t.Failed() {
			status, _ := m.output("systemctl", "status", "--no-pager", switchUnit)
			t.Logf("%v\n%s%s", err, text, status)
		}
	})
	m.run("systemctl", "start", switchUnit)
	return &unitSwitch{&running{t: t, socket: m.path("/run/vmnet/switch/sw0/socket")}, m}
}

// main returns the switch's process, which systemd and the switch agree on, in the manager's
// namespace.
func (u *unitSwitch) main() string {
	u.t.Helper()
	pid := ""
	nstest.Eventually(u.t, patience, "the unit runs", func() bool {
		pid = u.m.property(switchUnit, "MainPID")
		return u.m.property(switchUnit, "ActiveState") == "active" && pid != "0"
	})
	return pid
}

// await waits until another process than that serves.
func (u *unitSwitch) await(before string) {
	u.t.Helper()
	nstest.Eventually(u.t, patience, "another process serves", func() bool {
		return u.main() != before && u.ask(func(context.Context, *control.Client) error { return nil }) == nil
	})
}

// guests adds ports named as their kinds, held by a process beside the manager, and returns the
// guests' ends.
func (u *unitSwitch) guests() (ends map[string]*os.File) {
	u.t.Helper()
	holder := exec.Command("nsenter", "--target", strconv.Itoa(u.m.pid), "--mount", "--pid", "sleep", "1000")
	if err := holder.Start(); err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() {
		_ = holder.Process.Kill() // its child ends with the manager
		_ = holder.Wait()
	})
	pid, inside := 0, ""
	nstest.Eventually(u.t, patience, "the holder runs", func() bool {
		pid = childOf(holder.Process.Pid)
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, rest, _ := strings.Cut(string(status), "NSpid:")
		ids := strings.Fields(strings.SplitN(rest, "\n", 2)[0])
		if len(ids) > 1 {
			inside = ids[len(ids)-1]
		}
		return inside != ""
	})
	held, err := strconv.Atoi(inside)
	if err != nil {
		u.t.Fatal(err)
	}
	pidfd, err := control.OpenHolder(pid)
	if err != nil {
		u.t.Fatal(err)
	}
	defer pidfd.Close()
	ends = map[string]*os.File{}
	for kind, open := range map[string]func() (*os.File, *os.File, error){
		control.Socket: endpoint.SocketFiles, control.Stream: endpoint.StreamFiles,
	} {
		near, far, err := open()
		if err != nil {
			u.t.Fatal(err)
		}
		u.t.Cleanup(func() { _ = far.Close() })
		err = u.ask(func(ctx context.Context, c *control.Client) error {
			return c.AddPort(ctx, control.Port{Name: kind, Kind: kind, Holder: held}, pidfd, near)
		})
		if err = errors.Join(err, near.Close()); err != nil {
			u.t.Fatal(err)
		}
		ends[kind] = far
	}
	return ends
}

// TestLiveSwitchKilled kills a switch that systemd runs, upgrades it, and kills it again, while
// pings pass. Its guests keep their NICs each time.
func TestLiveSwitchKilled(t *testing.T) {
	ns := nstest.New(t)
	ipIn(t, ns.Path(), "link", "add", "up0", "type", "veth", "peer", "name", "lan0")
	ipIn(t, ns.Path(), "link", "set", "up0", "up")
	u := startUnit(t, ns, "--tap a,vlan=3 --tap b,queues=2,vlan=3 --packet up0,vlan=3 "+
		"--tun c,address=10.7.0.4/24,vlan=3 --vxlan vni=77,remote=192.0.2.1,vlan=3,name=v")
	address(t, ns, "a", "10.7.0.1")
	b, lan := seat(t, ns, "b", "10.7.0.2"), seat(t, ns, "lan0", "10.7.0.3")
	awaitAnswer(t, ns, "10.7.0.2")
	awaitAnswer(t, ns, "10.7.0.3")
	ends := u.guests()
	err := u.ask(func(ctx context.Context, c *control.Client) error {
		return c.SetLabel(ctx, control.Stream, "vmnet vm=P2 nic=net0")
	})
	if err != nil {
		t.Fatal(err)
	}

	kill := func() { u.m.run("kill", "-KILL", u.main()) }
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"kill -9", kill},
		{"systemctl reload", func() { u.m.run("systemctl", "reload", switchUnit) }},
		{"kill -9 after an upgrade", kill},
		{"vmnet switch upgrade", func() { u.m.run("vmnet", "switch", "upgrade", "sw0") }},
	} {
		before := u.main()
		var over atomic.Bool
		sent, lost, longest := 0, 0, time.Duration(0)
		pings := make(chan error, 1)
		go func() {
			pings <- ns.Do(func() error {
				for ; !over.Load(); sent++ {
					r, err := traffic.SendPing(t.Context(), traffic.Ping{Addr: "10.7.0.3"})
					if longest = max(longest, r.Max); err != nil {
						lost++
					}
				}
				return nil
			})
		}()
		step.do()
		u.await(before)
		over.Store(true)
		if err := <-pings; err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d of %d pings lost, one waited for %v", step.name, lost, sent, longest)
		if lost > 5 { // each is late by more than a second, as on a busy machine
			t.Errorf("%s: too many", step.name)
		}
		awaitAnswer(t, b, "10.7.0.3")
		awaitAnswer(t, lan, "10.7.0.4")
		ports := u.ports()
		p := ports[control.Stream]
		if len(ports) != 7 || p.Label != "vmnet vm=P2 nic=net0" || ports["b"].Config.VLAN != 3 {
			t.Errorf("%s: %+v", step.name, ports)
		}
		frame := slices.Concat(bytes.Repeat([]byte{0xff}, 6), []byte{2, 0, 0, 0, 0, 9}, make([]byte, 48))
		framed := append([]byte{0, 0, 0, byte(len(frame))}, frame...)
		sends(t, ends[control.Socket], frame, ends[control.Stream], framed)
		sends(t, ends[control.Stream], framed, ends[control.Socket], frame)
	}

	// What is removed is not kept either.
	u.m.run("vmnet", "switch", "remove-port", "sw0", "b")
	if isThere(t, b, "b") {
		awaitGone(t, b, "b")
	}
	before := u.main()
	kill()
	u.await(before)
	if ports := u.ports(); len(ports) != 6 {
		t.Errorf("%+v", ports)
	}
	before = u.main()
	u.m.run("systemctl", "reload", switchUnit) // to whose process systemd gives time, too
	u.await(before)
	u.m.run("systemctl", "stop", switchUnit)
	if result := u.m.property(switchUnit, "Result"); result != "success" {
		t.Errorf("the stop of an upgraded switch: %s", result)
	}
	awaitGone(t, ns, "a")
	if n := u.m.property(switchUnit, "NFileDescriptorStore"); n != "0" {
		t.Errorf("%s files are still stored", n)
	}
}

// TestLiveSwitchUnitFails has a unit whose next process cannot listen, and whose ExecReload= is no
// upgrade. systemd keeps the ports until a process goes on with them.
func TestLiveSwitchUnitFails(t *testing.T) {
	ns := nstest.New(t)
	u := startUnit(t, ns, "--tap a --tap b")
	u.m.run("vmnet", "switch", "remove-port", "sw0", "b")
	dropIn := func(text string) {
		u.m.run("sh", "-c", "printf %b \"$0\" >/etc/systemd/system/vmnet-switch@.service.d/test2.conf &&"+
			" systemctl daemon-reload", "[Service]\\n"+text)
	}
	dropIn("SystemCallFilter=~listen")
	before := u.main()
	u.m.run("kill", "-KILL", before)
	nstest.Eventually(t, patience, "it has failed to start twice", func() bool {
		n, err := strconv.Atoi(u.m.property(switchUnit, "NRestarts"))
		return err == nil && n > 2
	})
	dropIn("ExecReload=\\nExecReload=true")
	u.await(before)
	if ports := u.ports(); len(ports) != 1 || ports["a"].Name != "a" {
		t.Errorf("%+v", ports)
	}
	out, err := u.m.output("vmnet", "switch", "upgrade", "sw0")
	if err == nil || !strings.Contains(out, "still runs it") {
		t.Errorf("%v, %s", err, out)
	}
	for property, want := range map[string]string{"FileDescriptorStoreMax": "4096", "Environment": "FDSTORE=4096"} {
		if got := u.m.property(switchUnit, property); !strings.Contains(got, want) {
			t.Errorf("%s=%s", property, got)
		}
	}
	u.m.run("systemctl", "stop", switchUnit)
}

// sends checks that what one guest sends reaches another.
func sends(t *testing.T, from *os.File, sent []byte, to *os.File, want []byte) {
	t.Helper()
	if _, err := from.Write(sent); err != nil {
		t.Fatal(err)
	}
	room := make([]byte, 1<<16)
	nstest.Eventually(t, patience, "the frame arrives", func() bool {
		_ = to.SetReadDeadline(time.Now().Add(patience))
		n, err := to.Read(room)
		return err == nil && bytes.HasPrefix(room[:n], want)
	})
}
