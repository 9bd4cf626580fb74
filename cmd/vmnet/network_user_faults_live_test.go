package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"vmnet/internal/nstest"
)

// TestLiveUserNetworkRefused: what cannot be is said with its cure, and changes nothing.
func TestLiveUserNetworkRefused(t *testing.T) {
	h := newUserHost(t)
	program, err := exec.LookPath("vmnet")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := h.command(ctx, append([]string{program}, createLab...)...)
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(program))
	out, err := h.run(cmd)
	if err == nil || !strings.Contains(out, "pasta is not installed (apt install passt)") {
		t.Errorf("without pasta: %v: %s", err, out)
	}
	h.nothingLeft(nil)
	cmd = h.command(ctx, program, "doctor")
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(program))
	if out, _ := h.run(cmd); !strings.Contains(out, " pasta is not installed (apt install passt)\n") {
		t.Errorf("doctor without pasta: %s", out)
	}

	h.ok(createLab)
	before := h.pids("lab")
	if out, _ := h.vmnet("doctor"); !strings.Contains(out, " this user can have some without root, and has 1\n") ||
		!strings.Contains(out, " network lab  ") || strings.Contains(out, "CAP_SYS_ADMIN") {
		t.Errorf("doctor: %s", out)
	}
	h.fails(createLab, "exists already")
	h.fails([]string{"network", "serve", "lab"}, "a switch of that name runs already")

	var taken net.Listener
	err = h.ns.Do(func() (err error) {
		taken, err = net.Listen("tcp4", "0.0.0.0:8081")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	h.fails([]string{"forward", "add", "lab", "tcp:8081", "10.66.0.11:80"}, "address already in use", "ss -lntup")
	h.fails([]string{"forward", "add", "lab", "tcp:80", "10.66.0.11:80"}, "ip_unprivileged_port_start=80")
	h.fails([]string{"forward", "add", "lab", "tcp:5000-5200", "10.66.0.11"}, "has at most 200")
	if out := h.ok([]string{"forward", "list", "lab", "-o", "json"}); strings.TrimSpace(out) != "[]" {
		t.Errorf("forwards are left: %s", out)
	}
	h.ok([]string{"network", "check"}, "no difference")
	for name, pid := range h.pids("lab") {
		if before[name] != pid {
			t.Errorf("%s was restarted", name)
		}
	}

	// A supervisor that hangs.
	if err := syscall.Kill(before["supervisor"], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	h.fails([]string{"network", "check"}, "its process does not answer")
	h.ok([]string{"network", "delete", "lab", "--force"})
	h.fails([]string{"network", "delete", "lab"}, "there is no network lab")
	h.nothingLeft(before)
}

// TestLiveUserNetworkClientKilled: whenever the process of a verb is killed, the next apply
// completes the network, and the next delete removes it.
func TestLiveUserNetworkClientKilled(t *testing.T) {
	h := newUserHost(t)
	after := func(step string) func(string) bool {
		return func(log string) bool { return strings.Contains(log, "msg=step name="+step+" ") }
	}
	starts := func(program string) func(string) bool {
		return func(string) bool { return h.runs(program) != 0 }
	}
	apply, remove := []string{"network", "apply", "lab"}, []string{"network", "delete", "lab"}
	for _, test := range []struct {
		verb []string
		when func(log string) bool // it is killed
	}{
		{createLab, after("file")},
		{createLab, starts("network serve ")},
		{createLab, starts("dnsmasq ")},
		{apply, starts("network serve ")},
		{remove, after("network")},
		{remove, func(string) bool { return h.runs("dnsmasq ") == 0 }},
	} {
		switch test.verb[1] {
		case "apply":
			h.ok(createLab)
			if err := syscall.Kill(h.pids("lab")["supervisor"], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			nstest.Eventually(t, patience, "the network is absent", func() bool { return h.runs("") == 0 })
		case "delete":
			h.ok(createLab)
		}
		h.killed(test.verb, test.when)
		if _, err := os.Stat(h.home + "/.config/vmnet/networks.d/lab.yaml"); err == nil {
			h.ok([]string{"network", "apply", "lab"})
			h.ok([]string{"network", "check"}, "no difference")
		}
		out, err := h.vmnet("network", "delete", "lab")
		if err != nil && !strings.Contains(out, "there is no network lab") {
			t.Errorf("%v: delete: %v: %s", test.verb, err, out)
		}
		nstest.Eventually(t, patience, "no process is left", func() bool { return h.runs("") == 0 })
		h.nothingLeft(nil)
	}
}

// killed runs a verb as nobody, and kills it as soon as that is due; it may have ended before.
func (h *userHost) killed(verb []string, due func(log string) bool) {
	h.Helper()
	log, err := os.Create(filepath.Join(h.TempDir(), "log"))
	if err != nil {
		h.Fatal(err)
	}
	defer log.Close()
	cmd := h.command(context.Background(), append(append([]string{"vmnet"}, verb...), "-v")...)
	cmd.Stderr = log
	if err := h.ns.Do(cmd.Start); err != nil {
		h.Fatal(err)
	}
	nstest.Eventually(h, patience, "the verb is to be killed", func() bool {
		text, err := os.ReadFile(log.Name())
		return err == nil && due(string(text))
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// runs returns a process that has a path of the user's files and the text in its command line; 0
// for none.
func (h *userHost) runs(text string) int {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		b, _ := os.ReadFile(path) // it may have ended
		line := strings.ReplaceAll(string(b), "\x00", " ")
		if strings.Contains(line, h.home+"/") && strings.Contains(line, text) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

// TestLiveUserNetworkAfterLogout: a network ends with the directory of its sockets, which the end
// of the user's session removes.
func TestLiveUserNetworkAfterLogout(t *testing.T) {
	h := newUserHost(t)
	h.ok(createLab)
	pids := h.pids("lab")
	if err := errors.Join(os.RemoveAll(h.home+"/run"), os.Mkdir(h.home+"/run", 0o700),
		os.Chown(h.home+"/run", nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	for name, pid := range pids {
		nstest.Eventually(t, patience, name+" is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	}
	h.ok([]string{"network", "list"}, "absent")
	h.ok([]string{"network", "apply", "lab"})
	h.ok([]string{"network", "delete", "lab"})
	h.nothingLeft(nil)
}

// TestLiveUserNetworksOfTwo: networks of two users have nothing to do with each other, and one of a
// user without a runtime directory works as well. A host that has no way out has one later.
func TestLiveUserNetworksOfTwo(t *testing.T) {
	h := newUserHost(t)
	nl := nstest.Handle(t, h.ns)
	route := &netlink.Route{Gw: net.ParseIP(world4)}
	if err := nl.RouteDel(&netlink.Route{Gw: net.ParseIP(world6)}); err != nil {
		t.Fatal(err)
	}
	if err := nl.RouteDel(route); err != nil {
		t.Fatal(err)
	}
	h.ok(createLab, "the host has no default route")
	const second = "65533"
	home, err := os.MkdirTemp("", "home")
	if err == nil {
		err = os.Chown(home, 65533, 65533)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	other := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, "setpriv", append([]string{
			"--reuid", second, "--regid", second, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "vmnet",
		}, args...)...)
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "HOME="+home, "XDG_RUNTIME_DIR=",
			"XDG_CONFIG_HOME=", "XDG_STATE_HOME=")
		out, err := h.run(cmd)
		if err != nil {
			t.Errorf("vmnet %v: %v: %s", args, err, out)
		}
		return out
	}
	if out := other("network", "list"); strings.Contains(out, "lab") {
		t.Errorf("another user's network: %s", out)
	}
	other(createLab...)
	pids := h.pids("lab")
	if out := other("network", "list"); !strings.Contains(out, "up") {
		t.Errorf("the second network: %s", out)
	}
	other("network", "delete", "lab")
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Join(os.TempDir(), "vmnet-"+second)) })
	h.ok([]string{"network", "list"}, "up")

	if pids["pasta"] != 0 {
		t.Errorf("pasta runs without a way out: %v", pids)
	}
	if err := nl.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "there is a way out", func() bool {
		return strings.Contains(h.ok([]string{"network", "show", "lab", "-o", "json"}), `"way": "IPv4"`)
	})
	h.ok([]string{"network", "delete", "lab"})
	h.nothingLeft(pids)
}
