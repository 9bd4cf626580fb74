package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// Addresses of a userHost and of the world that it reaches.
const (
	userHost4, world4 = "203.0.113.2", "203.0.113.1"
	userHost6, world6 = "2001:db8:1::2", "2001:db8:1::1"
)

// userHost is a host with a way to a world outside, on which the user nobody has a network.
type userHost struct {
	*testing.T
	ns, world *netns.NS
	home      string
}

func newUserHost(t *testing.T) *userHost {
	t.Helper()
	nstest.RequireRoot(t)
	for program, pkg := range map[string]string{"pasta": "passt", "dnsmasq": "dnsmasq-base", "nft": "nftables"} {
		_, err := tool.Find(program, pkg)
		nstest.Require(t, program, err == nil, "apt install "+pkg)
	}
	forNobody(t)
	nstest.OpenTun(t)
	h := &userHost{T: t, ns: nstest.New(t), world: nstest.New(t)}
	home, err := os.MkdirTemp("", "home") // a short path, for sockets
	if err == nil {
		err = errors.Join(os.Mkdir(home+"/run", 0o700), os.Chown(home+"/run", nobody, nobody),
			os.Chown(home, nobody, nobody))
	}
	if err != nil {
		t.Fatal(err)
	}
	h.home = home
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	h.connect()
	h.serveWorld()
	t.Cleanup(func() {
		if out, err := h.vmnet("network", "list", "-o", "json"); err == nil {
			var all []network.Info
			_ = json.Unmarshal([]byte(out), &all)
			for _, n := range all {
				_, _ = h.vmnet("network", "delete", n.Network, "--force")
			}
		}
	})
	return h
}

// connect joins the host and the world by a veth pair.
func (h *userHost) connect() {
	h.Helper()
	nl, outside := nstest.Handle(h, h.ns), nstest.Handle(h, h.world)
	err := nl.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "e0", PeerNamespace: netlink.NsFd(h.world.Handle()),
	})
	if err != nil {
		h.Fatal(err)
	}
	for _, end := range []struct {
		nl    *netlink.Handle
		name  string
		addrs []string
	}{
		{nl, "up0", []string{userHost4 + "/24", userHost6 + "/64"}},
		{outside, "e0", []string{world4 + "/24", world6 + "/64"}},
	} {
		l, err := end.nl.LinkByName(end.name)
		if err == nil {
			err = end.nl.LinkSetUp(l)
		}
		for _, a := range end.addrs {
			addr, parseErr := netlink.ParseAddr(a)
			if err = errors.Join(err, parseErr); err == nil {
				addr.Flags = unix.IFA_F_NODAD
				err = end.nl.AddrAdd(l, addr)
			}
		}
		if err != nil {
			h.Fatal(err)
		}
	}
	for _, gw := range []string{world4, world6} {
		if err := nl.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}); err != nil {
			h.Fatal(err)
		}
	}
	err = h.ns.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644)
	})
	if err != nil {
		h.Fatal(err)
	}
}

// serveWorld tells each client outside from which address it comes.
func (h *userHost) serveWorld() {
	h.Helper()
	for _, addr := range []string{world4, world6} {
		var ln net.Listener
		err := h.world.Do(func() (err error) {
			ln, err = net.Listen("tcp", net.JoinHostPort(addr, "80"))
			return err
		})
		if err != nil {
			h.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "seen from %s\n", c.RemoteAddr().(*net.TCPAddr).IP)
				_ = c.Close()
			}
		}()
		h.Cleanup(func() {
			_ = ln.Close()
			<-done
		})
	}
}

// command prepares a program that the user nobody runs on the host.
func (h *userHost) command(ctx context.Context, argv ...string) *exec.Cmd {
	return h.rootCommand(ctx, append(append([]string{"setpriv"}, asNobody...), argv...)...)
}

// rootCommand prepares a program that root runs on the host.
func (h *userHost) rootCommand(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "HOME="+h.home, "XDG_RUNTIME_DIR="+h.home+"/run",
		"XDG_CONFIG_HOME=", "XDG_STATE_HOME=")
	cmd.Dir, cmd.WaitDelay = "/", 5*time.Second
	return cmd
}

// run runs a command of nobody on the host; the result is what it said.
func (h *userHost) run(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := h.ns.Do(cmd.Run)
	return out.String(), err
}

func (h *userHost) vmnet(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	return h.run(h.command(ctx, append([]string{"vmnet"}, args...)...))
}

// ok runs vmnet as nobody, which must succeed and say these texts.
func (h *userHost) ok(args []string, wants ...string) string {
	h.Helper()
	out, err := h.vmnet(args...)
	if err != nil {
		h.Errorf("vmnet %s: %v: %s", strings.Join(args, " "), err, out)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			h.Errorf("vmnet %s lacks %q: %s", strings.Join(args, " "), want, out)
		}
	}
	return out
}

// fails runs vmnet as nobody, which must fail and say these texts.
func (h *userHost) fails(args []string, wants ...string) {
	h.Helper()
	out, err := h.vmnet(args...)
	if err == nil {
		h.Errorf("vmnet %s succeeded: %s", strings.Join(args, " "), out)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			h.Errorf("vmnet %s lacks %q: %s", strings.Join(args, " "), want, out)
		}
	}
}

// pids returns the processes of a network by their names.
func (h *userHost) pids(name string) map[string]int {
	h.Helper()
	out := h.ok([]string{"network", "show", name, "-o", "json"})
	var shown network.Shown
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		h.Fatalf("%v: %s", err, out)
	}
	pids := map[string]int{}
	for _, p := range shown.Processes {
		pids[p.Name] = p.PID
	}
	return pids
}

// nothingLeft demands that no process and no file of networks is left.
func (h *userHost) nothingLeft(pids map[string]int) {
	h.Helper()
	for name, pid := range pids {
		nstest.Eventually(h, patience, name+" is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	}
	err := filepath.WalkDir(h.home, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != ".lock" {
			err = fmt.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		h.Error(err)
	}
}

// dial returns what a server says, or the error, to a client in ns.
func dialIn(ns *netns.NS, addr string) string {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", addr, patience)
		return err
	})
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	said, err := io.ReadAll(io.LimitReader(c, 1000))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(said))
}

// lease has a guest ask for an address as the name.
func (h *userHost) lease(g *testvm.VM, name string) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), time.Minute)
	defer cancel()
	script := "until ip link set eth0 up 2>/dev/null; do sleep 0.1; done; " +
		"udhcpc -f -n -q -i eth0 -t 10 -T 1 -x hostname:" + name
	if out, err := g.Guest.Exec(ctx, "sh", "-c", script); err != nil {
		h.Fatalf("udhcpc: %v: %s", err, out)
	}
}

// says runs a command in a guest, which must say the text within a while.
func (h *userHost) says(g *testvm.VM, want string, argv ...string) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), 2*patience)
	defer cancel()
	var out string
	var err error
	for ctx.Err() == nil {
		if out, err = g.Guest.Exec(ctx, argv...); err == nil && strings.Contains(out, want) {
			return
		}
	}
	h.Errorf("%v in the guest lacks %q: %s, %v", argv, want, out, err)
}

// connects connects a guest to a server, which says the text.
func (h *userHost) connects(g *testvm.VM, addr, port, want string) {
	h.Helper()
	// pasta of Debian 12 does not pass a server's end on to a client that has ended before.
	h.says(g, want, "sh", "-c", "sleep 1 | timeout 5 nc "+addr+" "+port)
}

// createLab is the command line by which the tests make their network.
var createLab = []string{
	"network", "create", "lab", "--nat", "--dhcp", "--subnet", "10.66.0.0/24", "--ipv6", "fd66:1:2:3::/64",
}

// declares writes a file of nobody's that declares net0 of a guest, and returns its path.
func (h *userHost) declares(vm, net0 string) string {
	h.Helper()
	file := h.home + "/" + vm + ".yaml"
	text := fmt.Sprintf("vm: %s\nnics: {net0: {%s}}\n", vm, net0)
	if err := errors.Join(os.WriteFile(file, []byte(text), 0o644), os.Chown(file, nobody, nobody)); err != nil {
		h.Fatal(err)
	}
	return file
}

// TestLiveUserNetwork: two guests of a user without any capability have addresses and names, reach
// each other and the world, and are reached from the host's ports.
func TestLiveUserNetwork(t *testing.T) {
	h := newUserHost(t)
	red, redName := nobodys(t)
	blue, blueName := nobodys(t)
	h.ok(createLab, "network lab created")
	h.fails([]string{"attach", "--vm", redName, "--network", "lab", "--ip", "10.66.0.1"},
		"want an address from 10.66.0.3")
	h.ok([]string{"attach", "--vm", redName, "--network", "lab", "--ip", "10.66.0.20"},
		redName+"-net0 on switch lab, IP 10.66.0.20")
	h.fails([]string{"attach", "--vm", blueName, "--network", "lab", "--ip", "10.66.0.20"},
		"10.66.0.20 is "+redName+"/net0's")
	// blue's NIC is declared in a file, which means the user's own network, too.
	file := h.declares(blueName, "network: lab")
	h.ok([]string{"apply", "-f", file, "--dry-run"}, blueName+"/net0: attach: ")
	h.ok([]string{"apply", "-f", file}, blueName+"/net0: attached: ")
	h.ok([]string{"apply", "-f", file}, blueName+": unchanged")
	h.ok([]string{"list", "--vm", blueName}, "lab")
	h.lease(red, "red")
	h.lease(blue, "blue")
	var leases []struct{ IP, Name, Guest string }
	out := h.ok([]string{"network", "leases", "lab", "-o", "json"})
	if err := json.Unmarshal([]byte(out), &leases); err != nil || len(leases) != 2 {
		t.Fatalf("leases %v: %s", err, out)
	}
	ip := map[string]string{}
	for _, l := range leases {
		ip[map[string]string{redName + "/net0": "red", blueName + "/net0": "blue"}[l.Guest]] = l.IP
	}
	if ip["red"] != "10.66.0.20" || ip["blue"] == "" {
		t.Fatalf("leases: %s", out)
	}
	h.ok([]string{"network", "show", "lab"}, redName+"/net0", "65520 bytes")
	for _, g := range []*testvm.VM{red, blue} {
		h.says(g, "65520", "cat", "/sys/class/net/eth0/mtu")
	}
	for _, to := range []string{"10.66.0.1", ip["blue"]} {
		h.says(red, "2 packets received", "ping", "-s", "60000", "-c", "2", "-w", "20", to)
	}
	h.says(red, ip["blue"], "nslookup", "-type=a", "blue.lab.internal")
	h.says(red, ip["blue"], "nslookup", "-type=a", strings.ToLower(blueName)+".lab.internal")
	h.says(red, "3 packets received", "ping", "-c", "3", "-w", "20", "blue")
	for _, world := range []string{world4, world6} {
		h.connects(blue, world, "80", "seen from "+map[string]string{world4: userHost4, world6: userHost6}[world])
		h.says(blue, "2 packets received", "ping", "-c", "2", "-w", "20", world)
	}

	// Forwards, made and changed while the guests run.
	h.says(red, "", "sh", "-c",
		`printf '#!/bin/sh\necho red\n' >/red; chmod +x /red; nc -ll -p 80 -e /red >/dev/null 2>&1 &`)
	h.ok([]string{"forward", "add", "lab", "tcp:8080", strings.ToLower(redName) + ":80"}, "added")
	h.ok([]string{"forward", "list", "lab", "-o", "json"}, `"ip": "`+ip["red"]+`"`)
	for _, from := range []struct {
		ns   *netns.NS
		addr string
	}{{h.ns, "127.0.0.1:8080"}, {h.ns, userHost4 + ":8080"}, {h.world, userHost4 + ":8080"}} {
		nstest.Eventually(t, patience, "red answers at "+from.addr, func() bool {
			return dialIn(from.ns, from.addr) == "red"
		})
	}
	for _, at := range []string{userHost4, "10.66.0.1"} {
		h.connects(blue, at, "8080", "red")
	}
	h.ok([]string{"forward", "remove", "lab", "tcp:8080"})
	if said := dialIn(h.ns, "127.0.0.1:8080"); !strings.Contains(said, "refused") {
		t.Errorf("a removed forward: %s", said)
	}

	h.ok([]string{"network", "check"}, "no difference")
	pids := h.pids("lab")
	if len(pids) != 4 {
		t.Errorf("processes %v", pids)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	h.fails([]string{"network", "delete", "lab"}, redName+"-net0")
	h.ok([]string{"network", "delete", "lab", "--force"})
	h.nothingLeft(pids)
}

// TestLiveUserNetworkKilled: whichever process is killed, the network works again or nothing is
// left.
func TestLiveUserNetworkKilled(t *testing.T) {
	h := newUserHost(t)
	h.ok(createLab)
	for _, part := range []string{"pasta", "dnsmasq"} {
		was := h.pids("lab")
		if err := syscall.Kill(was[part], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, patience, part+" runs again", func() bool {
			now := h.pids("lab")
			return now[part] != 0 && now[part] != was[part] && now["supervisor"] == was["supervisor"]
		})
		h.ok([]string{"network", "check"}, "no difference")
	}
	for _, part := range []string{"agent", "supervisor"} {
		was := h.pids("lab")
		if err := syscall.Kill(was[part], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for name, pid := range was {
			nstest.Eventually(t, patience, name+" ends with "+part, func() bool { return syscall.Kill(pid, 0) != nil })
		}
		nstest.Eventually(t, patience, "the network is absent", func() bool {
			return strings.Contains(h.ok([]string{"network", "list"}), "absent")
		})
		h.ok([]string{"network", "apply", "lab"}, "applied")
	}
	pids := h.pids("lab")
	h.ok([]string{"network", "delete", "lab"})
	h.nothingLeft(pids)
}
