package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestLiveStrangersTap: a user who holds a tap with the guest's MAC, and says to be its QEMU, gets
// nothing of what is declared.
func TestLiveStrangersTap(t *testing.T) {
	h := installed(t)
	h.define("web", metadata(`<vmnet:nic mac="`+guestMAC(2).String()+`" isolated="yes"/>`), onBridge(2))
	h.sh("ip tuntap add tap7 mode tap; ip link set tap7 address fe" + guestMAC(2).String()[2:] + " master br0 up")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "monitor"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	monitor, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	stranger := exec.Command("nsenter", "--target", fmt.Sprint(h.virt.PID()), "--net", "--pid", "--mount",
		"qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-machine", "pc,accel=tcg", "-m", "32",
		"-name", "guest=web", "-uuid", h.virt.Virsh("domuuid", "web"),
		"-chardev", "socket,id=charmonitor,server=on,wait=off,fd=3", "-mon", "chardev=charmonitor,mode=control",
		"-netdev", "tap,id=n,ifname=tap7,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n")
	stranger.ExtraFiles = []*os.File{monitor}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	}()
	h.eventually("the stranger holds its tap", func() bool {
		l, err := h.nl.LinkByName("tap7")
		return err == nil && l.Attrs().OperState == netlink.OperUp
	})
	h.virt.Virsh("start", "web")
	if h.isolated("tap7") {
		t.Error("the stranger's port was set")
	}
	for _, l := range h.links() {
		if l != "tap7" && !h.isolated(l) {
			t.Errorf("%s, the guest's, was not set", l)
		}
	}
}

// TestLiveStrangersNode: any user can have the node of a macvtap made in /dev, for which libvirt
// takes a tap of that index and opens the stranger's device.
func TestLiveStrangersNode(t *testing.T) {
	h := installed(t)
	h.define("web", metadata(`<vmnet:nic id="net0" bridge="br0"/>`), handed("web-0", "net0", 1, ""))
	h.sh("ip tuntap add probe mode tap")
	probe, err := h.nl.LinkByName("probe")
	if err != nil {
		t.Fatal(err)
	}
	h.sh("ip link del probe")
	next := probe.Attrs().Index + 1

	// Before: another index is taken.
	const plant = "exec setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Urn sh -ec '%s echo planted; read end'"
	var nodes strings.Builder
	nodes.WriteString("ip link add eth0 type veth peer name far0;")
	for i := range 3 {
		fmt.Fprintf(&nodes, "ip link add index %d link eth0 name m%d type macvtap;", next+i, i)
	}
	stranger := h.background(fmt.Sprintf(plant, nodes.String()))
	h.virt.Virsh("start", "web")
	l, err := h.nl.LinkByName("web-0")
	if err != nil || l.Attrs().Index < next+3 || l.Attrs().OperState != netlink.OperUp {
		t.Errorf("web-0 is %+v, %v; nodes from %d on are a stranger's", l, err, next)
	}
	stranger()
	h.virt.Virsh("destroy", "web")
	h.nothingLeft()

	// After the tap was made, before libvirt opens it: the guest does not go on.
	h.script("zz", `cat >/dev/null; [ $2 = prepare ] || exit 0
i=$(cat /sys/class/net/web-0/ifindex); ip netns add far; ip netns exec far sh -ec "ip link add eth0 type veth peer name far0; ip link add index $i link eth0 name m0 type macvtap"`)
	h.refused("web", "libvirt has not opened web-0, but /dev/tap")
}

// background runs commands until the result is called. They have done what they do when they print
// a line.
func (h *host) background(script string) (end func()) {
	h.Helper()
	cmd := exec.Command("sh", "-c", script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		h.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		h.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	h.Cleanup(end)
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		h.Fatal(err)
	}
	return end
}
