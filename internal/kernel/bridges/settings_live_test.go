package bridges_test

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
)

// heard returns the ports that must send an untagged frame.
func heard(ports ...string) map[string]int {
	m := map[string]int{}
	for _, p := range ports {
		m[p] = untagged
	}
	return m
}

func diff(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestLiveIsolatedPorts(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	l.add("a", "isolated")
	l.add("b", "isolated")
	l.add("uplink", "")
	diff(t, "a to all", heard("uplink"), l.send("a", everybody, 1, untagged))
	diff(t, "b to all", heard("uplink"), l.send("b", everybody, 2, untagged))
	diff(t, "uplink to all", heard("a", "b"), l.send("uplink", everybody, 3, untagged))
	diff(t, "a to b, which is known", heard(), l.send("a", 2, 1, untagged))
	l.set("b", "")
	diff(t, "a to all, b not isolated any more", heard("b", "uplink"), l.send("a", everybody, 1, untagged))
}

func TestLiveHairpinReflects(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	l.add("a", "")
	l.add("b", "")
	diff(t, "without", heard("b"), l.send("a", everybody, 1, untagged))
	l.set("a", "hairpin")
	diff(t, "with", heard("a", "b"), l.send("a", everybody, 1, untagged))
	diff(t, "to another behind the same port", heard("a"), func() map[string]int {
		l.send("a", everybody, 9, untagged) // so that the bridge learns that 9 is behind a
		return l.send("a", 9, 1, untagged)
	}())
	l.set("a", "")
	diff(t, "without again", heard("b"), l.send("a", everybody, 1, untagged))
}

func TestLiveNoLearningKeepsTheFDBEmpty(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	l.add("a", "")
	l.add("b", "")
	learned := func() int {
		got, err := bridges.LearnedBy(l.c, l.br.Index, l.link("a").Index)
		if err != nil {
			t.Fatal(err)
		}
		return len(got[l.link("a").Index])
	}
	l.send("a", everybody, 1, untagged)
	if n := learned(); n != 1 {
		t.Fatalf("%d addresses learned, want 1", n)
	}
	l.set("a", "nolearn")
	if n := learned(); n != 0 {
		t.Errorf("%d addresses that were learned before are kept", n)
	}
	l.send("a", everybody, 2, untagged)
	if n := learned(); n != 0 {
		t.Errorf("%d addresses learned without learning", n)
	}
	l.set("a", "")
	l.send("a", everybody, 3, untagged)
	if n := learned(); n != 1 {
		t.Errorf("%d addresses learned with learning again, want 1", n)
	}
}

func TestLiveNoFloodDropsTheUnknownOnly(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	for _, name := range []string{"a", "b", "c"} {
		l.add(name, "")
	}
	const unknown, known = 7, 2
	diff(t, "without, to unknown", heard("b", "c"), l.send("a", unknown, 1, untagged))
	l.set("b", "noflood")
	diff(t, "with, to unknown", heard("c"), l.send("a", unknown, 1, untagged))
	diff(t, "with, to all", heard("b", "c"), l.send("a", everybody, 1, untagged))
	l.send("b", everybody, known, untagged)
	diff(t, "with, to known", heard("b"), l.send("a", known, 1, untagged))
	l.set("b", "")
	diff(t, "without again, to unknown", heard("b", "c"), l.send("a", unknown, 1, untagged))
}

func TestLiveSetPortFromAnyToAny(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	l.add("a", "")
	all := []string{
		"", "isolated", "hairpin", "nolearn", "noflood", "isolated;hairpin;nolearn;noflood",
		"hairpin;noflood", "forward:lldp", "noflood;forward:all",
	}
	for _, from := range all {
		for _, to := range all {
			l.set("a", from)
			l.set("a", to)
		}
	}
}

// By a port's mask the kernel forwards all of 01:80:c2:00:00:00 to 0f but pause frames, also those
// that it refuses in a bridge's mask.
func TestLiveForward(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	for name, settings := range map[string]string{"none": "", "some": "forward:lldp,lacp", "every": "forward:all"} {
		l.add(name, settings)
	}
	for last := range byte(17) {
		for from, want := range map[string]bool{
			"none":  last == 0 || last > 15,
			"some":  last == 0 || last == 2 || last == 14 || last > 15,
			"every": last != 1,
		} {
			l.sent++
			f := frame(everybody, host(last), untagged, l.sent)
			copy(f[vnetHdr:], []byte{1, 0x80, 0xc2, 0, 0, last})
			if _, err := l.taps[from].Queues()[0].Write(f); err != nil {
				t.Fatal(err)
			}
			got := 0
			for _, frames := range l.frames() {
				for _, f := range frames {
					if _, id, ok := parseFrame(f); ok && id == l.sent {
						got++
					}
				}
			}
			if got != 0 && !want || got != 2 && want {
				t.Errorf("address %02x from %s: %d ports have received it", last, from, got)
			}
		}
	}
	changed, err := bridges.AddSettings(l.c, l.br, l.link("some"), l.parse("forward:eapol"))
	if got := l.read("some").String(); err != nil || !changed || got != "forward:lacp,eapol,lldp" {
		t.Errorf("it is %q, %v", got, err)
	}
}

// AddSettings keeps what another program has set on a port, even at the same time.
func TestLiveAddSettingsKeepsTheRest(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	l.add("a", "nolearn;hairpin")
	for _, want := range []bool{true, false} {
		changed, err := bridges.AddSettings(l.c, l.br, l.link("a"), brport.Settings{Isolated: true})
		if err != nil || changed != want {
			t.Fatalf("changed is %v, want %v: %v", changed, want, err)
		}
		if got := l.read("a").String(); got != "isolated;hairpin;nolearn" {
			t.Errorf("it is %q", got)
		}
	}
	stale := rtnl.PortFlags{Learning: true, Flood: true} // as before another program set hairpin and nolearn
	err := l.c.SetPort(l.link("a").Index, rtnl.PortChange{PortFlags: rtnl.PortFlags{Learning: true}, From: &stale})
	if got := l.read("a").String(); err != nil || got != "isolated;hairpin;nolearn;noflood" {
		t.Errorf("it is %q: %v", got, err)
	}
	if _, err := bridges.AddSettings(l.c, l.br, l.link("a"), brport.Settings{VLAN: 5000}); !errors.Is(err,
		brport.ErrInvalid) {
		t.Error(err)
	}
}

// A caller without privilege can set what is set already, and otherwise learns why not.
func TestLiveSetPortAgainChangesNothing(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	l.add("a", "isolated;noflood")
	a := l.link("a")
	err := withoutNetAdmin(t, func() error { return bridges.SetPort(l.c, l.br, a, l.parse("isolated;noflood")) })
	if err != nil {
		t.Errorf("set as it is: %v", err)
	}
	err = withoutNetAdmin(t, func() error { return bridges.SetPort(l.c, l.br, a, l.parse("noflood")) })
	if !errors.Is(err, fs.ErrPermission) ||
		!strings.Contains(err.Error(), "set port a of br0: operation not permitted (needs CAP_NET_ADMIN)") {
		t.Errorf("set otherwise: got %v", err)
	}
}

// withoutNetAdmin calls f on a thread without CAP_NET_ADMIN, which ends afterwards.
func withoutNetAdmin(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			t.Error(err)
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			t.Error(err)
		}
		done <- f()
	}()
	return <-done
}

func TestLiveVLANsNeedABridgeThatFilters(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	dev, link := tap(t, l.ns, l.c, "a")
	defer dev.Close()
	l.add("b", "isolated")
	for what, err := range map[string]error{
		"add": bridges.AddPort(l.c, l.br, link, brport.Settings{VLAN: 10}),
		"set": bridges.SetPort(l.c, l.br, l.link("b"),
			brport.Settings{Trunk: []brport.VLANRange{{First: 2, Last: 5}}, Hairpin: true}),
	} {
		want := "bridge br0 does not filter VLANs (vmnet bridge create --vlan-filtering, or ip link set br0 type bridge vlan_filtering 1)"
		if !l.br.Bridge.CanFilterVLANs {
			want = "lacks CONFIG_BRIDGE_VLAN_FILTERING"
		}
		if err == nil || !strings.Contains(err.Error(), want) ||
			errors.Is(err, brport.ErrNotSupported) == l.br.Bridge.CanFilterVLANs {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
	}
	if a := l.link("a"); a.Master != 0 || a.Up {
		t.Errorf("a was changed: %+v", a)
	}
	if got := l.read("b"); got.String() != "isolated" {
		t.Errorf("b was changed: %q", got)
	}
}

func TestLiveSetPortOfNoPort(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	_, link := tap(t, l.ns, l.c, "a")
	if err := bridges.SetPort(l.c, l.br, link, brport.Settings{Isolated: true}); err == nil ||
		!strings.Contains(err.Error(), "not a port of that bridge") {
		t.Errorf("set: got %v", err)
	}
	if _, err := bridges.ReadPort(l.c, l.br, link); err == nil ||
		!strings.Contains(err.Error(), "read port a of br0: it is not a port") {
		t.Errorf("read: got %v", err)
	}
	if err := bridges.SetPort(l.c, l.br, link, brport.Settings{VLAN: 5000}); !errors.Is(err, brport.ErrInvalid) {
		t.Errorf("invalid: got %v", err)
	}
	gone := &rtnl.Link{Index: 1 << 30, Name: "gone"}
	if err := bridges.SetPort(l.c, l.br, gone, brport.Settings{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: got %v", err)
	}
}

// TestLiveAddPortIsUndone lets the kernel refuse a port's settings after the link has become a
// port.
func TestLiveAddPortIsUndone(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	br, cfg, text := *l.br, brport.Settings{VLAN: 10}, "set port a of br0: read the VLANs"
	want := errors.ErrUnsupported
	if br.Bridge.CanFilterVLANs {
		// Such a kernel has VLAN devices (net/bridge/Kconfig), which cannot be up while their
		// parent device is down (vlan_dev_open in net/8021q/vlan_dev.c).
		_, parent := tap(t, l.ns, l.c, "parent")
		vlan := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "a", ParentIndex: parent.Index}, VlanId: 5}
		if err := nstest.Handle(t, l.ns).LinkAdd(vlan); err != nil {
			t.Fatal(err)
		}
		cfg, text, want = brport.Settings{Isolated: true}, "add port a to br0", unix.ENETDOWN
	} else {
		// The bridge was read before it stopped filtering VLANs, so that the kernel reports none.
		br.Bridge = &rtnl.Bridge{CanFilterVLANs: true, VLANFiltering: true, DefaultPVID: 1}
		tap(t, l.ns, l.c, "a")
	}
	err := bridges.AddPort(l.c, &br, l.link("a"), cfg)
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v", err)
	}
	if a := l.link("a"); a.Master != 0 || a.Up {
		t.Errorf("a is still a port: %+v", a)
	}
}

// No frame of a guest that sends all the time passes while its port is added.
func TestLiveAddPortHasNoGap(t *testing.T) {
	l := newLAN(t, bridge.Config{})
	l.add("listener", "isolated")
	dev, link := tap(t, l.ns, l.c, "a")
	floodWhile(t, dev.Queues()[0], func() {
		for range 30 {
			if err := l.c.Set(link.Index, rtnl.Up(true)); err != nil {
				t.Fatal(err)
			}
			if err := bridges.AddPort(l.c, l.br, l.link("a"), brport.Settings{Isolated: true}); err != nil {
				t.Fatal(err)
			}
			if a := l.link("a"); !a.Up || a.Master != l.br.Index || !a.Port.Isolated {
				t.Fatalf("added: %+v", a)
			}
			if err := bridges.RemovePort(l.c, l.link("a")); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, f := range l.frames()["listener"] {
		if _, _, ok := parseFrame(f); ok {
			t.Fatal("a frame passed")
		}
	}
}

// floodWhile sends untagged broadcasts into a tap while f runs.
func floodWhile(t *testing.T, q *os.File, f func()) {
	t.Helper()
	stop := make(chan struct{})
	var sender sync.WaitGroup
	sent := 0
	sender.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := q.Write(frame(everybody, 1, untagged, 1)); err != nil {
				time.Sleep(10 * time.Microsecond) // not a wait: the pace while the tap is down
			} else {
				sent++
			}
		}
	})
	defer func() {
		close(stop)
		sender.Wait()
		if sent == 0 {
			t.Error("no frame was sent")
		}
	}()
	f()
}
