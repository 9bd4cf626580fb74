package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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

	h.ok(createLab)
	before := h.pids("lab")
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
