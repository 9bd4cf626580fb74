// Package nstest gives tests of the kernel a network namespace of their own, and says how to
// prepare a machine that cannot run them.
package nstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/leaktest"
)

// Require skips the test unless ok, and names the cure. If the environment's VMNET_REQUIRE (comma
// separated, as CI sets it) lists the feature or "all", the test fails instead, so that CI cannot
// pass by skipping; "-feature" excepts one from all.
func Require(tb testing.TB, feature string, ok bool, cure string) {
	tb.Helper()
	if ok {
		return
	}
	if demanded(os.Getenv("VMNET_REQUIRE"), feature) {
		tb.Fatalf("this test needs %s, which VMNET_REQUIRE demands: %s", feature, cure)
	}
	tb.Skipf("this test needs %s: %s", feature, cure)
}

// demanded reports whether a list like VMNET_REQUIRE has a feature.
func demanded(list, feature string) bool {
	all := strings.Split(list, ",")
	return slices.Contains(all, feature) || slices.Contains(all, "all") && !slices.Contains(all, "-"+feature)
}

// firstPIDNS is the name of the first process namespace (PROC_PID_INIT_INO in
// include/linux/proc_ns.h).
const firstPIDNS = "pid:[4026531836]"

// RequireFirstPIDNS is for a test of something known only if all processes of the machine are
// visible: which process holds a macvtap by its node. The test's name begins with TestLiveAllPIDs,
// by which make test finds it.
func RequireFirstPIDNS(tb testing.TB) {
	tb.Helper()
	if !strings.HasPrefix(tb.Name(), "TestLiveAllPIDs") {
		tb.Fatal("the name of a test that needs the first process namespace begins with TestLiveAllPIDs")
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	Require(tb, "pidns", err == nil && ns == firstPIDNS,
		"run it outside of containers and other process namespaces, with VMNET_TEST_PIDS=machine (make test does)")
}

// RequireRoot is for a test that needs root's privileges on the machine itself, such as making
// device nodes or using the ids of other users.
func RequireRoot(tb testing.TB) {
	tb.Helper()
	in, _ := leaktest.UserNS()
	Require(tb, "root", os.Geteuid() == 0 && !in, "run it as root")
}

// RequireTCX is for a test of what the kernel forwards between packet ports, by BPF programs at the
// TCX hook of their devices (Linux 6.6).
func RequireTCX(tb testing.TB) {
	tb.Helper()
	RequireRoot(tb)
	var major, minor int
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err == nil {
		_, err = fmt.Sscanf(string(release), "%d.%d", &major, &minor)
	}
	Require(tb, "tcx", err == nil && (major > 6 || major == 6 && minor >= 6), "use Linux 6.6 or newer")
}

// userNSCure is how to let ordinary users make user namespaces: on Debian's kernels, on Ubuntu's,
// and on all.
const userNSCure = "as root: sysctl kernel.unprivileged_userns_clone=1, or kernel.apparmor_restrict_unprivileged_userns=0; " +
	"and user.max_user_namespaces must not be 0; or run it as root"

// RequireUserNS is for a test for which root in a user namespace is enough. Its package's TestMain
// calls leaktest.MainInUserNS.
func RequireUserNS(tb testing.TB) {
	tb.Helper()
	_, err := leaktest.UserNS()
	Require(tb, "userns", os.Geteuid() == 0 && err == nil, fmt.Sprintf("%s (%v)", userNSCure, err))
}

// RequireTun is for a test that makes a tap with no other privilege than a user namespace gives.
func RequireTun(tb testing.TB) {
	tb.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		err = f.Close()
	}
	Require(tb, "tun", err == nil, fmt.Sprintf("as root: modprobe tun; chmod 666 /dev/net/tun, as udev does (%v)", err))
}

// OpenTun lets all users open the tun driver's device, as udev does, until the tests end: in their
// mount namespace.
func OpenTun(tb testing.TB) {
	tb.Helper()
	const device = "/dev/net/tun"
	info, err := os.Stat(device)
	Require(tb, "tun", err == nil, "modprobe tun")
	if info.Mode().Perm() == 0o666 {
		return
	}
	node := filepath.Join(os.TempDir(), "tun-for-all")
	err = errors.Join(unix.Mknod(node, unix.S_IFCHR|0o666, int(info.Sys().(*syscall.Stat_t).Rdev)),
		os.Chmod(node, 0o666), unix.Mount(node, device, "", unix.MS_BIND, ""), os.Remove(node))
	if err != nil {
		tb.Fatal(err)
	}
}

// NewInUserNS is [New] for a test that asks no more than [RequireUserNS] does.
func NewInUserNS(tb testing.TB) *netns.NS {
	tb.Helper()
	RequireUserNS(tb)
	return newNetns(tb)
}

// New makes an unnamed netns with lo up, which ends with the test.
func New(tb testing.TB) *netns.NS {
	tb.Helper()
	RequireRoot(tb)
	return newNetns(tb)
}

func newNetns(tb testing.TB) *netns.NS {
	tb.Helper()
	ns, err := netns.New()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = ns.Close() })
	nl := Handle(tb, ns)
	lo, err := nl.LinkByName("lo")
	if err == nil {
		err = nl.LinkSetUp(lo)
	}
	if err != nil {
		tb.Fatalf("bring lo up: %v", err)
	}
	return ns
}

// Handle opens a netlink handle in ns, which is closed when the test ends.
func Handle(tb testing.TB, ns *netns.NS) *netlink.Handle {
	tb.Helper()
	nl, err := netlink.NewHandleAt(ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatalf("open netlink: %v", err)
	}
	tb.Cleanup(nl.Close)
	return nl
}

// PacketSocket returns a socket that receives the frames of the link of that index in ns, of all
// links if it is 0, and sends frames by it. It is closed when the test ends.
func PacketSocket(tb testing.TB, ns *netns.NS, index int) *os.File {
	tb.Helper()
	protocol := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network byte order (packet(7))
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "packet socket")
	tb.Cleanup(func() { _ = f.Close() })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}); err != nil {
		tb.Fatal(err)
	}
	return f
}
