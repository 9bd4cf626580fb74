package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/libvirt/libvirttest"
	"vmnet/testvm"
)

// TestLiveGuest: frames pass, by a tap and by a macvtap, also after a new start of libvirtd.
func TestLiveGuest(t *testing.T) {
	h := installed(t)
	h.lower("eth1")
	h.sh("ip address add 10.7.0.1/24 dev br0; ip address add 10.8.0.1/24 dev eth1-far")
	g := h.virt.NewGuest(t, testvm.Domain{
		Name: "web",
		Metadata: metadata(`<vmnet:nic id="net0" bridge="br0" isolated="yes"/>`,
			`<vmnet:nic id="net1" macvtap="eth1"/>`),
		Interfaces: handed("web-0", "net0", 1, "") + handed("web-1", "net1", 2, ""),
	})
	g.Boot()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for n, net := range map[int]string{1: "10.7.0", 2: "10.8.0"} {
		if err := g.UseNIC(ctx, guestMAC(n).String(), net+".2/24"); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Ping(ctx, net+".1"); err != nil {
			t.Errorf("ping by NIC %d: %v", n, err)
		}
	}
	h.restart()
	if _, err := g.Ping(ctx, "10.7.0.1"); err != nil {
		t.Errorf("after libvirtd's new start: %v", err)
	}
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()
}

// sh runs commands in the host's network.
func (h *host) sh(script string) {
	h.Helper()
	if out, err := exec.Command("nsenter", "--net="+h.ns.Path(), "sh", "-ec", script).CombinedOutput(); err != nil {
		h.Fatalf("%v: %s", err, out)
	}
}

// TestLiveSession: a user's own libvirtd calls the hook as well, with the user's privileges, which
// do not suffice.
func TestLiveSession(t *testing.T) {
	ns := nstest.New(t)
	virt, _ := libvirttest.StartSession(t, ns)
	path := build(t)
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} { // the test's own
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h := &host{T: t, ns: ns, virt: virt, nl: nstest.Handle(t, ns), hook: path}
	h.link()
	h.sh("ip link add br0 type bridge")
	h.restart()
	h.define("web", metadata(`<vmnet:nic id="net0" bridge="br0"/>`), handed("web-0", "net0", 1, ""))
	out, err := virt.Try("start", "web")
	if err == nil || !strings.Contains(out, "vmnet-hook: prepare web: prepare web/net0: tap: ") {
		t.Errorf("start: %v: %s", err, out)
	}
}
