package vswitch

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

func plain(names ...string) map[string]vport.Config {
	ports := map[string]vport.Config{}
	for _, n := range names {
		ports[n] = vport.Config{}
	}
	return ports
}

func TestLearnsAndForwards(t *testing.T) {
	l := newLAN(t, plain("a", "b", "c"))
	step := func(what, from string, frame []byte, want ...string) {
		t.Helper()
		got := l.send(from, frame)
		if !slices.Equal(names(got), want) {
			t.Errorf("%s reached %v, want %v", what, names(got), want)
		}
		for name, frames := range got {
			if len(frames) != 1 || !bytes.Equal(frames[0], frame) {
				t.Errorf("%s: %s got %x, want %x", what, name, frames, frame)
			}
		}
	}
	step("to an unknown address", "a", etherFrame(mac(2), mac(1), nil, 100), "b", "c")
	step("the answer", "b", etherFrame(mac(1), mac(2), nil, 100), "a")
	step("now it is known", "a", etherFrame(mac(2), mac(1), nil, 100), "b")
	step("broadcast", "a", etherFrame(all, mac(1), nil, 46), "b", "c")
	step("multicast", "c", etherFrame(net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, mac(3), nil, 46), "a", "b")
	step("a spanning tree's", "a", etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, mac(1), nil, 46), "b", "c")
	step("one for the next bridge", "a", etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, mac(1), nil, 46))
	step("to itself", "a", etherFrame(mac(1), mac(1), nil, 100))
	step("b's address moves to c", "c", etherFrame(mac(1), mac(2), nil, 100), "a")
	step("and is reached there", "a", etherFrame(mac(2), mac(1), nil, 100), "c")
	step("with a tag, as it is", "a", etherFrame(all, mac(1), tagged("8100:4094"), 100), "b", "c")
	step("with a priority, as it is", "a", etherFrame(all, mac(1), tagged("8100:24576"), 100), "b", "c")
	step("with a tag to a known one", "a", etherFrame(mac(2), mac(1), tagged("8100:7"), 100), "c")
	step("no payload", "a", etherFrame(mac(2), mac(1), nil, 0), "c")
	step("no source", "a", etherFrame(mac(2), net.HardwareAddr{0, 0, 0, 0, 0, 0}, nil, 100))
	step("a group as source", "a", etherFrame(mac(2), all, nil, 100))
	step("too short", "a", make([]byte, 13))
	step("a tag cut off", "a", etherFrame(all, mac(1), tagged("8100:7"), 0)[:16])
	step("the reserved VLAN", "a", etherFrame(all, mac(1), tagged("8100:4095"), 100), "b", "c")
	step("longer than the port's buffers", "a", etherFrame(all, mac(1), nil, 9000))
	step("as long as the MTU allows", "a", etherFrame(mac(2), mac(1), nil, 1500), "c")
	step("with two tags, too", "a", etherFrame(mac(2), mac(1), tagged("88a8:1", "8100:5"), 1500), "c")
	step("room for a tag, as the kernel's bridge has it", "a", etherFrame(mac(2), mac(1), nil, 1504), "c")
	step("one byte more", "a", etherFrame(mac(2), mac(1), nil, 1505))

	want := map[string]uint64{
		LinkLocal.String(): 1, SamePort.String(): 1, BadSource.String(): 2, Short.String(): 2, Giant.String(): 1,
	}
	if got := l.port("a").Stats(); !equal(got.Drops, want) || got.Total().TxFrames != 3 ||
		got.Total().RxFrames != l.stations["a"].sent-1 {
		t.Errorf("counted %+v, want %v", got, want)
	}
	if got := l.port("c").Dropped(TooBig); got != 1 {
		t.Errorf("c has dropped %d as too big", got)
	}
}

func equal(got, want map[string]uint64) bool {
	if len(got) != len(want) {
		return false
	}
	for k, v := range want {
		if got[k] != v {
			return false
		}
	}
	return true
}

// TestForward sends frames of link-local protocols from ports that do and do not forward them.
func TestForward(t *testing.T) {
	forward := func(list string) vport.Config {
		p, err := brport.ParseProtocols(list)
		if err != nil {
			t.Fatal(err)
		}
		return vport.Config{Settings: brport.Settings{Forward: p}}
	}
	l := newLAN(t, map[string]vport.Config{"none": {}, "some": forward("lldp,eapol"), "all": forward("all")})
	for last := range byte(18) {
		for from, want := range map[string]bool{
			"none": last == 0 || last > 15,
			"some": last == 0 || last == 3 || last == 14 || last > 15,
			"all":  last != 1,
		} {
			got := l.send(from, etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, last}, mac(last), nil, 46))
			if (len(got) == 2) != want || len(got) == 1 {
				t.Errorf("%s, address %02x: reached %v", from, last, names(got))
			}
		}
	}
	// The source of a frame that is not forwarded is learned, as by the kernel's bridge. That of a
	// pause frame is not.
	l.send("none", etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 2}, mac(99), nil, 46))
	l.send("none", etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 1}, mac(98), nil, 46))
	index := l.port("none").PortIndex()
	if at, not := l.sw.FDB().Lookup(KeyOf(mac(99), defaultVLAN)),
		l.sw.FDB().Lookup(KeyOf(mac(98), defaultVLAN)); at != index || not != -1 {
		t.Errorf("behind %d and %d, want %d and -1", at, not, index)
	}
}

func TestPortSettings(t *testing.T) {
	isolated := vport.Config{Settings: brport.Settings{Isolated: true}}
	l := newLAN(t, map[string]vport.Config{
		"guest1": isolated, "guest2": isolated, "uplink": {},
		"hairpin": {Settings: brport.Settings{Hairpin: true}},
		"deaf":    {Settings: brport.Settings{NoLearning: true}},
		"noflood": {Settings: brport.Settings{NoFlood: true}},
		"locked":  {MACs: []net.HardwareAddr{mac(6), mac(7)}},
		"few":     {MaxAddresses: 2},
	})
	check := func(what string, got map[string][][]byte, want ...string) {
		t.Helper()
		slices.Sort(want)
		if !slices.Equal(names(got), want) {
			t.Errorf("%s: %v, want %v", what, names(got), want)
		}
	}
	check("isolated, flooded", l.send("guest1", etherFrame(all, mac(1), nil, 46)), "uplink", "hairpin", "deaf",
		"noflood", "locked", "few")
	check("isolated, known", l.send("guest2", etherFrame(mac(1), mac(2), nil, 46)))
	check("from the uplink", l.send("uplink", etherFrame(mac(2), mac(3), nil, 46)), "guest2")
	check("hairpin, flooded", l.send("hairpin", etherFrame(all, mac(4), nil, 46)), "guest1", "guest2", "uplink",
		"hairpin", "deaf", "noflood", "locked", "few")
	check("hairpin, back", l.send("hairpin", etherFrame(mac(4), mac(44), nil, 46)), "hairpin")
	check("not learned", l.send("deaf", etherFrame(mac(3), mac(5), nil, 46)), "uplink")
	check("so flooded", l.send("uplink", etherFrame(mac(5), mac(3), nil, 46)), "guest1", "guest2", "hairpin",
		"deaf", "locked", "few")
	check("spoofed", l.send("locked", etherFrame(mac(3), mac(1), nil, 46)))
	check("allowed", l.send("locked", etherFrame(mac(3), mac(7), nil, 46)), "uplink")
	l.send("uplink", etherFrame(mac(3), mac(6), nil, 46))
	check("the address of a locked port is its own", l.send("guest1", etherFrame(mac(6), mac(1), nil, 46)), "locked")
	check("the spoofed one stays where it was", l.send("uplink", etherFrame(mac(1), mac(3), nil, 46)), "guest1")
	for n := byte(10); n < 20; n++ {
		l.send("few", etherFrame(mac(3), mac(n), nil, 46))
	}
	if got := l.sw.FDB().Stats(); got.Refused != 8 {
		t.Errorf("few: %+v", got)
	}
	if err := l.sw.AddStatic("uplink", mac(9), 0); err != nil {
		t.Error(err)
	}
	l.send("guest1", etherFrame(all, mac(9), nil, 46))
	check("static", l.send("guest1", etherFrame(mac(9), mac(1), nil, 46)), "uplink")
	if g, s := l.port("guest2").Dropped(Isolated), l.port("locked").Dropped(Spoofed); g != 1 || s != 1 {
		t.Errorf("dropped %d as isolated and %d as spoofed, want 1 and 1", g, s)
	}
}

// TestFullTargetBlocksNobody has a station that does not read.
func TestFullTargetBlocksNobody(t *testing.T) {
	l := newLAN(t, plain("a", "b", "c"))
	l.send("b", etherFrame(all, mac(2), nil, 46))
	l.send("c", etherFrame(all, mac(3), nil, 46))
	a, before := l.stations["a"], l.port("b").Stats().Total().TxFrames
	for range 200 { // more than b's buffers can hold
		for range 100 {
			_, err := unix.Write(a.fd, etherFrame(mac(2), mac(1), nil, 1500))
			if err == nil {
				a.sent++
			}
		}
		l.settle("a")
	}
	if full := l.port("b").Dropped(Full); full == 0 || l.port("b").Stats().Total().TxFrames+full != before+a.sent {
		t.Errorf("%d dropped: %+v of %d", full, l.port("b").Stats(), a.sent)
	}
	if _, err := unix.Write(a.fd, etherFrame(mac(3), mac(1), nil, 46)); err != nil {
		t.Fatal(err)
	}
	a.sent++
	l.settle("a")
	if l.stations["c"].read() == nil {
		t.Error("c received nothing")
	}
}

func TestPortsComeAndGo(t *testing.T) {
	l := newLAN(t, plain("a", "b"))
	w, far, err := SocketPair(0)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := l.sw.AddPort("a", w, vport.Config{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a taken name: %v", err)
	}
	if _, err := unix.Write(int(far.Fd()), make([]byte, 60)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the wire of the refused port is still open: %v", err)
	}
	if err := l.sw.RemovePort("nobody"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such port: %v", err)
	}
	l.send("b", etherFrame(all, mac(2), nil, 46))
	b := l.port("b")
	if err := l.sw.RemovePort("b"); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(b.Err(), fs.ErrClosed) {
		t.Errorf("b ended with %v", b.Err())
	}
	if got := l.send("a", etherFrame(mac(2), mac(1), nil, 46)); len(got) != 0 || l.port("a").Dropped(NoPort) != 1 {
		t.Errorf("without b: %v, %+v", names(got), l.port("a").Stats())
	}
	_ = l.stations["b"].far.Close()
	delete(l.stations, "b")
	index := l.add("c", vport.Config{}).PortIndex()
	if got := names(l.send("a", etherFrame(mac(2), mac(1), nil, 46))); !slices.Equal(got, []string{"c"}) ||
		index != b.PortIndex() {
		t.Errorf("b's address reaches %v; c has index %d, b had %d", got, index, b.PortIndex())
	}
	if got := l.sw.Ports(); len(got) != 2 || got[0].Name() != "a" || got[1].Name() != "c" {
		t.Errorf("ports: %v", got)
	}
}

func TestPeerThatCloses(t *testing.T) {
	l := newLAN(t, plain("a", "b"))
	p := l.port("b")
	if p.Err() != nil {
		t.Fatal(p.Err())
	}
	_ = l.stations["b"].far.Close()
	l.stations["b"].fd = -1
	l.send("a", etherFrame(all, mac(1), nil, 46))
	select {
	case <-p.Ended():
	case <-time.After(20 * time.Second):
		t.Fatal("the port has not ended")
	}
	if !errors.Is(p.Err(), unix.ECONNREFUSED) || p.Dropped(Gone) != 1 || !strings.Contains(p.Stats().Ended, "port b") {
		t.Errorf("%v, %+v", p.Err(), p.Stats())
	}
}

// TestClosedPeerEndsItsPort closes the other end of a socket to which no frame is sent. Frames to
// the addresses behind it must be flooded.
func TestClosedPeerEndsItsPort(t *testing.T) {
	l := newLAN(t, plain("a", "b", "c"))
	l.send("b", etherFrame(all, mac(2), nil, 46))
	p := l.port("b")
	_ = l.stations["b"].far.Close()
	delete(l.stations, "b")
	nstest.Eventually(t, 20*time.Second, "the port has ended, and its addresses are removed", func() bool {
		return p.State() == vport.StateEnded && l.sw.FDB().Lookup(KeyOf(mac(2), defaultVLAN)) == -1
	})
	if !errors.Is(p.Err(), unix.ECONNREFUSED) {
		t.Error(p.Err())
	}
	if got := names(l.send("a", etherFrame(mac(2), mac(1), nil, 46))); !slices.Equal(got, []string{"c"}) {
		t.Errorf("frames for it reached %v", got)
	}
	for _, name := range []string{"a", "c"} {
		if s := l.port(name).State(); s != vport.StateUp {
			t.Errorf("port %s is %s", name, s)
		}
	}
}

func TestAddPortToClosedSwitch(t *testing.T) {
	l := newLAN(t, plain("a"))
	if err := errors.Join(l.sw.Close(), l.sw.Close()); err != nil {
		t.Error(err)
	}
	w, far, err := SocketPair(0)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := l.sw.AddPort("b", w, vport.Config{}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a port of a closed switch: %v", err)
	}
}

func TestInvalidConfig(t *testing.T) {
	for text, cfg := range map[string]vport.Config{
		"MTU 67":         {MTU: 67},
		"MTU 65536":      {MTU: 65536},
		"not multicast":  {MACs: []net.HardwareAddr{all}},
		"want 6 bytes":   {MACs: []net.HardwareAddr{{2, 0}}},
		"at most 64":     {MACs: make([]net.HardwareAddr, 65)},
		"VLAN 4095":      access(4095),
		"storm limit":    {Storm: vport.Storm{Multicast: -1}},
		"-2 frames":      {Storm: vport.Storm{Refused: -2}},
		"want 0 to 8388": {MaxAddresses: -1},
	} {
		if err := cfg.Validate(); !errors.Is(err, brport.ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
	sw := New(Config{})
	defer sw.Close()
	for name, mtu := range map[string]int{"": 0, strings.Repeat("a", 128): 0, "a": 1} {
		w, far, err := SocketPair(0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sw.AddPort(name, w, vport.Config{MTU: mtu}); err == nil {
			t.Errorf("port %q with MTU %d was added", name, mtu)
		}
		_ = far.Close()
	}
	if _, err := OpenTap(); err == nil {
		t.Error("a tap without queues was opened")
	}
	for _, f := range []*os.File{os.Stdin} {
		if _, err := OpenSocket(f, 0); err == nil {
			t.Errorf("%s was opened as a socket", f.Name())
		}
		if _, err := OpenTap(f); err == nil {
			t.Errorf("%s was opened as a tap", f.Name())
		}
	}
}

func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]Reason{}
	for r := range Reason(Reasons) {
		if r == offloadBase { // OK, which stands for Delivered
			continue
		}
		if other, ok := seen[r.String()]; ok || strings.Contains(r.String(), "unknown reason") {
			t.Errorf("%d and %d are both %q", r, other, r)
		}
		seen[r.String()] = r
	}
}

// TestRemovedPortIsForgotten checks that an idle receiver does not keep the MiBs of a removed
// port's buffers.
func TestRemovedPortIsForgotten(t *testing.T) {
	l := newLAN(t, plain("a", "b"))
	removed := weak.Make(l.add("c", vport.Config{}))
	for _, from := range []string{"a", "b", "c"} {
		l.send(from, etherFrame(all, mac(from[0]), nil, 46))
	}
	if err := l.sw.RemovePort("c"); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 20*time.Second, "nothing refers to the removed port", func() bool {
		runtime.GC()
		return removed.Value() == nil
	})
}

func TestCures(t *testing.T) {
	for why := range Reason(Reasons) {
		cure, ok := cures[why]
		got := Cures(map[string]uint64{why.String(): 1, "no reason of ours": 1})
		if want := (map[string]string{why.String(): cure}); ok && !maps.Equal(got, want) || !ok && got != nil {
			t.Errorf("%q: cures %q, want %q", why, got, cure)
		}
		if got := Cures(map[string]uint64{why.String(): 0}); got != nil {
			t.Errorf("%q never happened, but has the cures %q", why, got)
		}
	}
	cure := cures[Indescribable]
	for _, feature := range []string{"tx-udp-segmentation", "tx-sctp-segmentation", "rx-udp-gro-forwarding"} {
		if !strings.Contains(cure, feature+" off") {
			t.Errorf("no %s in %q", feature, cure)
		}
	}
}
