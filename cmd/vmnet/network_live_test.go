package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

// TestLiveNetworkWithThePrivilegesOfItsUnit: the capabilities that the unit allows are enough to
// serve a network twice, and to leave nothing of its server.
func TestLiveNetworkWithThePrivilegesOfItsUnit(t *testing.T) {
	ns := nstest.New(t)
	_, err := tool.Find("dnsmasq", "dnsmasq-base")
	nstest.Require(t, "dnsmasq", err == nil, "apt install dnsmasq-base")
	dir, err := os.MkdirTemp("", "network")
	if err == nil {
		err = os.Chmod(dir, 0o755) // for dnsmasq's user
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	text := "nat: true\nsubnet: 10.66.0.0/24\nipv6: \"fd66:1:2:3::/64\"\ndhcp: true\n"
	if err := os.WriteFile(filepath.Join(dir, "lab.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	heard := systemd(t)
	for range 2 {
		cmd := exec.Command("nsenter", "--net="+ns.Path(), "setpriv", "--no-new-privs", "--bounding-set",
			unitCapabilities(t, "vmnet-network@.service"), "vmnet", "network", "serve", "lab",
			"--config-dir", dir, "--state-dir", filepath.Join(dir, "state"))
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+heard.LocalAddr().String(), "GORACE=atexit_sleep_ms=0")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		hear(t, heard, "READY=1\nSTATUS=network lab: guests are answered")
		ipIn(t, ns.Path(), "link", "show", "lab-srv")
		reloadMends(t, ns, cmd.Process)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		hear(t, heard, "STOPPING=1")
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if _, err := nstest.Handle(t, ns).LinkByName("lab-srv"); err == nil {
			t.Error("lab-srv is left")
		}
	}
}

// reloadMends: SIGUSR1, by which the unit is reloaded, has the network made as its file says.
func reloadMends(t *testing.T, ns *netns.NS, serve *os.Process) {
	t.Helper()
	if err := nft.Apply(t.Context(), ns, "flush ruleset\n"); err != nil {
		t.Fatal(err)
	}
	if err := serve.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the table is back", func() bool {
		_, err := nft.ListTable(t.Context(), ns, "inet", "vmnet-lab")
		return err == nil
	})
}
