package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// unitCapabilities are those that a systemd unit leaves to its program, in setpriv(1)'s form.
func unitCapabilities(t *testing.T, name string) string {
	t.Helper()
	unit, err := os.ReadFile("../../docs/systemd/" + name)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	if found == nil {
		t.Fatal("the unit names no capabilities")
	}
	set := "-all"
	for _, name := range strings.Fields(string(found[1])) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	return set
}

// nobodysGuest is a QEMU of the user nobody, whose monitor no other user can reach.
func nobodysGuest(t *testing.T, name string) (pid int) {
	t.Helper()
	const nobody = 65534
	dir, err := os.MkdirTemp("", "nobody")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "qmp")
	cmd := exec.Command("setpriv", "--reuid", fmt.Sprint(nobody), "--regid", fmt.Sprint(nobody), "--clear-groups",
		qemuProgram, "-S", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "32", "-display", "none", "-name",
		"guest="+name, "-qmp", "unix:"+socket+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	nstest.Eventually(t, patience, "QEMU listens", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return cmd.Process.Pid
}

// hasDeaf gives the guest a macvtap that drops frames which the guest wants, for watch to find.
func hasDeaf(t *testing.T, ns *netns.NS, name string, pid int) {
	t.Helper()
	m, err := tapmgr.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	spec := nic.Spec{
		Target: nic.Target{VM: name, PID: pid}, Vhost: nic.VhostOff,
		Lower: &nic.Lower{Kind: vtap.Macvtap, Device: "eth0", RxFilter: nic.RxMirror},
	}
	if _, err := m.Attach(ctx, spec); err != nil {
		t.Fatal(err)
	}
	d, err := m.Show(ctx, name)
	if err != nil || len(d) != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	ipIn(t, d[0].Netns, "link", "set", "dev", d[0].Interface, "allmulticast", "off")
}

func ipIn(t *testing.T, netns string, args ...string) {
	t.Helper()
	if out, err := exec.Command("nsenter",
		append([]string{"--net=" + netns, "ip"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// TestLiveWatchWithTheRightsOfItsUnit: watch does work that needs each of the unit's capabilities,
// and notifies systemd.
func TestLiveWatchWithTheRightsOfItsUnit(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	_, err := exec.LookPath(qemuProgram)
	nstest.Require(t, "qemu", err == nil, "apt install qemu-system-x86")
	ns := nstest.New(t)
	ipIn(t, ns.Path(), "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	ipIn(t, ns.Path(), "link", "set", "eth0", "up")
	ipIn(t, ns.Path(), "tuntap", "add", "lost", "mode", "tap")
	ipIn(t, ns.Path(), "link", "set", "dev", "lost", "address", "fe:54:00:00:00:01") // otherwise it is reset
	ipIn(t, ns.Path(), "link", "set", "dev", "lost", "alias",
		"vmnet vm=dead nic=lost type=tap source=br0 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1")
	ipIn(t, ns.Path(), "link", "add", "br0", "type", "bridge")
	vm := uniqueVM()
	hasDeaf(t, ns, vm, nobodysGuest(t, vm))
	other := uniqueVM()
	nobodysGuest(t, other)
	dir := t.TempDir()
	file := "user: nobody\nnics: {net1: {bridge: br0}, net2: {macvtap: eth0}, net3: {routed: eth0, ip: 192.0.2.7}}\n"
	if err := os.WriteFile(filepath.Join(dir, other+".yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}

	told := systemd(t)
	argv := append(confinement(t, "vmnet-watch.service"), "setpriv", "--bounding-set",
		unitCapabilities(t, "vmnet-watch.service"), "--no-new-privs", "vmnet", "--netns", ns.Path(), "watch",
		"--no-libvirt", "--log", "json", "--guests-dir", dir)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+told.LocalAddr().String(), "GORACE=atexit_sleep_ms=0")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	lines := logLines(t, log)
	hear(t, told, "READY=1")
	want := map[string]string{
		"ready": "", "put back on br0": "lost",
		"accepts all multicast, as the guest wants": "net0",
		"attached: bridge br0":                      "net1",
		"attached: macvtap eth0":                    "net2",
		"attached: routed eth0, ip 192.0.2.7":       "net3",
	}
	for len(want) > 0 {
		l, open := <-lines
		if !open {
			t.Fatalf("it has ended; of what it should say, %v is missing", want)
		}
		if nic, wanted := want[l.Msg]; wanted && l.Level == "INFO" && l.NIC == nic {
			delete(want, l.Msg)
		} else {
			t.Errorf("it says %+v", l)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hear(t, told, "STOPPING=1")
	for l := range lines {
		if l.Msg != "ended" {
			t.Errorf("at its end it says %+v", l)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// systemd is the socket that sd_notify(3) writes to.
func systemd(t *testing.T) *net.UnixConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func hear(t *testing.T, c *net.UnixConn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != want {
		t.Fatalf("systemd gets %q, %v; want %q", b[:n], err, want)
	}
}

type logLine struct{ Level, Msg, Guest, NIC, Interface, Error string }

// logLines reads the log; a malformed line fails the test. A wait for a line is bounded.
func logLines(t *testing.T, log interface{ Read([]byte) (int, error) }) <-chan logLine {
	lines := make(chan logLine)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(log); s.Scan(); {
			var l logLine
			if err := json.Unmarshal(s.Bytes(), &l); err != nil {
				t.Errorf("it logs %q: %v", s.Text(), err)
				continue
			}
			select {
			case lines <- l:
			case <-time.After(patience):
				return
			}
		}
	}()
	return lines
}
