// Package nstest gives kernel tests a network namespace of their own, and says how to make a
// machine run them that cannot.
package nstest

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
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

// New makes an unnamed netns with lo up, which ends with the test.
func New(tb testing.TB) *netns.NS {
	tb.Helper()
	Require(tb, "root", os.Geteuid() == 0, "run it as root")
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

// Handle is a netlink handle in ns, which ends with the test.
func Handle(tb testing.TB, ns *netns.NS) *netlink.Handle {
	tb.Helper()
	nl, err := netlink.NewHandleAt(ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatalf("open netlink: %v", err)
	}
	tb.Cleanup(nl.Close)
	return nl
}
