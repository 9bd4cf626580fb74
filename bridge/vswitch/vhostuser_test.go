package vswitch

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/nstest"
	"vmnet/internal/vhostuser/frontend"
)

// soon bounds what takes milliseconds on an idle machine.
const soon = 20 * time.Second

// A driven is a port with the driver of its guest.
type driven struct {
	tb testing.TB
	*Port
	*frontend.Frontend
}

// listening adds a port at whose socket frontends connect, and returns the socket's path.
func (l *lan) listening(name string, cfg vport.Config, pairs int) (*Port, string) {
	l.tb.Helper()
	path := filepath.Join(l.tb.TempDir(), name)
	f, err := endpoint.ListenStream(path)
	if err != nil {
		l.tb.Fatal(err)
	}
	defer f.Close()
	w, err := OpenVhostUser(f, "", pairs)
	if err != nil {
		l.tb.Fatal(err)
	}
	p, err := l.sw.AddPort(name, w, cfg)
	if err != nil {
		l.tb.Fatal(err)
	}
	return p, path
}

// guest adds a port with a guest whose driver is ready.
func (l *lan) guest(name string, cfg vport.Config, driver frontend.Config) driven {
	l.tb.Helper()
	p, path := l.listening(name, cfg, max(driver.Pairs, 1))
	return driven{l.tb, p, connect(l.tb, p, path, driver)}
}

func connect(tb testing.TB, p *Port, path string, driver frontend.Config) *frontend.Frontend {
	tb.Helper()
	conn, err := frontend.Connect(path)
	if err != nil {
		tb.Fatal(err)
	}
	f, err := frontend.New(conn, driver)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	await(tb, p, vport.StateUp)
	return f
}

func await(tb testing.TB, p *Port, want vport.State) {
	tb.Helper()
	nstest.Eventually(tb, soon, "port "+p.Name()+" is "+string(want), func() bool { return p.State() == want })
}

// sends sends frames without offloads, and waits until the switch has handled them.
func (d driven) sends(frames ...[]byte) {
	d.tb.Helper()
	before := d.Stats().Total().RxFrames
	for _, f := range frames {
		whole := append(make([]byte, frontend.Header), f...)
		nstest.Eventually(d.tb, soon, "the ring has room", func() bool { return d.Pair[0].Send(whole) == 1 })
	}
	nstest.Eventually(d.tb, soon, "the frames of "+d.Name()+" are handled", func() bool {
		return d.Stats().Total().RxFrames == before+uint64(len(frames))
	})
}

// gets returns what the guest has received, without headers.
func (d driven) gets() (all [][]byte) {
	for f, ok := d.Pair[0].Receive(); ok; f, ok = d.Pair[0].Receive() {
		all = append(all, f[frontend.Header:])
	}
	return all
}

// TestVhostUserPort passes frames between guests in a VLAN, a trunk and a locked port.
func TestVhostUserPort(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"trunk": trunkAll(0)})
	a := l.guest("a", access(10), frontend.Config{})
	locked := access(10)
	locked.MACs = []net.HardwareAddr{mac(2)}
	b := l.guest("b", locked, frontend.Config{Without: frontend.Mergeable})

	a.sends(etherFrame(all, mac(1), nil, 60))
	if got := b.gets(); len(got) != 1 || !bytes.Equal(got[0], etherFrame(all, mac(1), nil, 60)) {
		t.Errorf("a broadcast reaches the other guest as %x", got)
	}
	trunkSees := func(want []byte) {
		t.Helper()
		s := l.stations["trunk"]
		var got []byte
		nstest.Eventually(t, soon, "the trunk sees it", func() bool { got = s.read(); return got != nil })
		if !bytes.Equal(got, want) {
			t.Errorf("the trunk sees %x, want %x", got, want)
		}
	}
	trunkSees(etherFrame(all, mac(1), tagged("8100:10"), 60))
	b.sends(etherFrame(mac(1), mac(2), nil, 1400))
	if got := a.gets(); len(got) != 1 || !bytes.Equal(got[0], etherFrame(mac(1), mac(2), nil, 1400)) {
		t.Errorf("a unicast frame arrives as %x", got)
	}
	b.sends(etherFrame(mac(1), mac(3), nil, 60))
	if got := a.gets(); len(got) != 0 || b.Dropped(Spoofed) != 1 {
		t.Errorf("a forged frame: %x, %v", got, b.Stats().Drops)
	}
	if got := names(l.send("trunk", etherFrame(mac(1), mac(7), tagged("8100:10"), 60))); len(got) != 0 {
		t.Errorf("the stations %v see a frame for a guest", got)
	}
	if got := a.gets(); len(got) != 1 || !bytes.Equal(got[0], etherFrame(mac(1), mac(7), nil, 60)) {
		t.Errorf("a tagged frame arrives as %x", got)
	}
	l.send("trunk", etherFrame(mac(1), mac(7), tagged("8100:11"), 60))
	if got := a.gets(); len(got) != 0 {
		t.Errorf("a frame of another VLAN arrives: %x", got)
	}
	st := a.Stats()
	if st.Kind != "vhost-user" || st.MTU != 1500 || st.Total() != (vport.QueueStats{
		RxFrames: 1, RxBytes: 74, TxFrames: 2, TxBytes: 1414 + 74,
	}) {
		t.Errorf("%+v", st)
	}
}

// TestVhostUserTakesWhatItNegotiated: super-frames reach a guest whole or not, and its MTU counts.
func TestVhostUserTakesWhatItNegotiated(t *testing.T) {
	l := newLAN(t, nil)
	for name, tt := range map[string]struct {
		driver frontend.Config
		want   offload.Limits
	}{
		"all": {frontend.Config{MTU: 9000}, offload.Limits{
			CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, MTU: 9000, VnetHdr: vnetLen,
		}},
		"none": {frontend.Config{Without: frontend.GuestCSum}, offload.Limits{MTU: 1500, VnetHdr: vnetLen}},
	} {
		d := l.guest(name, vport.Config{}, tt.driver)
		if got := *d.limits.Load(); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// TestVhostUserFrontendsComeAndGo: the port is down without one, and the FDB forgets its addresses.
func TestVhostUserFrontendsComeAndGo(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"far": {}})
	p, path := l.listening("guest", vport.Config{}, 2)
	await(t, p, vport.StateDown)
	for range 3 {
		d := driven{t, p, connect(t, p, path, frontend.Config{Pairs: 2})}
		d.sends(etherFrame(mac(9), mac(1), nil, 60))
		if at := l.sw.fdb.Lookup(keyOf(macWord(mac(1)), 1)); at != p.index {
			t.Errorf("the guest's address is at %d", at)
		}
		if err := d.Frontend.Close(); err != nil {
			t.Fatal(err)
		}
		await(t, p, vport.StateDown)
		nstest.Eventually(t, soon, "the address of a guest that is gone is forgotten", func() bool {
			return l.sw.fdb.Lookup(keyOf(macWord(mac(1)), 1)) < 0
		})
		l.send("far", etherFrame(mac(1), mac(2), nil, 60))
	}
	l.endsGuest(p, path)
}

// endsGuest wants three frames dropped while nobody was at port guest, and removes it with the file
// of its socket.
func (l *lan) endsGuest(p *Port, path string) {
	l.tb.Helper()
	if n := p.Dropped(Down); n != 3 {
		l.tb.Errorf("%d frames are dropped because the port is down", n)
	}
	if err := l.sw.RemovePort("guest"); err != nil {
		l.tb.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		l.tb.Errorf("the socket's file: %v", err)
	}
}

// TestVhostUserConnects has a switch that connects to frontends, which come later and go.
func TestVhostUserConnects(t *testing.T) {
	l := newLAN(t, nil)
	path := filepath.Join(t.TempDir(), "frontend")
	dir, err := endpoint.StreamDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, name := range []string{"", ".", "..", "a/b"} {
		if _, err := OpenVhostUser(dir, name, 1); err == nil {
			t.Errorf("the name %q is accepted", name)
		}
	}
	w, err := OpenVhostUser(dir, "frontend", 1)
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.sw.AddPort("guest", w, vport.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		at, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := at.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		_ = at.Close()
		f, err := frontend.New(conn, frontend.Config{})
		if err != nil {
			t.Fatal(err)
		}
		await(t, p, vport.StateUp)
		_ = f.Close()
		await(t, p, vport.StateDown)
	}
}

// TestVhostUserLeftSocket: what a killed frontend has left goes with its port, and the socket of
// one that listens stays.
func TestVhostUserLeftSocket(t *testing.T) {
	for _, c := range []struct{ ended, listens, stays bool }{
		{true, false, false}, {true, true, true}, {false, false, true},
	} {
		l := newLAN(t, nil)
		path := filepath.Join(t.TempDir(), "frontend")
		dir, err := endpoint.StreamDirectory(path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := OpenVhostUser(dir, "frontend", 1)
		_ = dir.Close()
		if err != nil {
			t.Fatal(err)
		}
		p, err := l.sw.AddPort("guest", w, vport.Config{})
		if err != nil {
			t.Fatal(err)
		}
		at, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		at.SetUnlinkOnClose(false)
		if !c.listens {
			_ = at.Close()
		}
		if c.ended {
			p.OtherEnded()
		}
		if err := l.sw.RemovePort("guest"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); (err == nil) != c.stays {
			t.Errorf("%+v: the socket's file: %v", c, err)
		}
		_ = at.Close()
	}
}

// TestVhostUserConnected: a port that was given a connected frontend ends with it.
func TestVhostUserConnected(t *testing.T) {
	l := newLAN(t, nil)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	w, err := OpenVhostUser(near, "", 1)
	if err != nil {
		t.Fatal(err)
	}
	_ = near.Close()
	p, err := l.sw.AddPort("guest", w, vport.Config{})
	if err != nil {
		t.Fatal(err)
	}
	_ = far.Close()
	await(t, p, vport.StateEnded)
	if err := p.Err(); !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
}

func TestVhostUserRefusesOtherFiles(t *testing.T) {
	w, far, err := SocketPair(1500)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer far.Close()
	if _, err := OpenStream(far, ""); err == nil || !strings.Contains(err.Error(), "stream socket") {
		t.Errorf("a datagram socket as a stream: %v", err)
	}
	if _, err := OpenVhostUser(far, "", 1); err == nil || !strings.Contains(err.Error(), "stream socket") {
		t.Errorf("a datagram socket: %v", err)
	}
	if _, err := OpenVhostUser(far, "", 0); err == nil || !strings.Contains(err.Error(), "pairs") {
		t.Errorf("no queues: %v", err)
	}
}

// TestHostileVhostUser has a guest whose memory goes away, one that writes nonsense and one that
// keeps the switch waiting. Each loses only its own session, with a notice, and two others go on.
func TestHostileVhostUser(t *testing.T) {
	notices := make(chan string, 16)
	l := newLAN(t, nil)
	_ = l.sw.Close()
	l.sw = New(Config{Notice: func(text string) { notices <- text }})
	a, b := l.guest("a", vport.Config{}, frontend.Config{}), l.guest("b", vport.Config{}, frontend.Config{})
	for want, harm := range map[string]func(d driven){
		"its memory at 0x10000 is gone": func(d driven) {
			if err := d.Shrink(); err != nil {
				t.Error(err)
			}
			d.Pair[0].Kick(true)
		},
		"the ring is malformed":    func(d driven) { d.Pair[0].Corrupt(40000) },
		"request 77":               func(d driven) { _ = d.Send(77, 1, nil) },
		"keeps a write to its eve": func(d driven) { holdUp(t, d); a.sends(toAll()[frontend.Header:]) },
	} {
		d := l.guest("hostile", vport.Config{}, frontend.Config{Without: frontend.EventIndex})
		harm(d)
		select {
		case text := <-notices:
			if !strings.Contains(text, "port hostile") || !strings.Contains(text, want) {
				t.Errorf("notice %q: want %q", text, want)
			}
		case <-time.After(soon):
			t.Fatalf("no notice of %q", want)
		}
		if err := l.sw.RemovePort("hostile"); err != nil {
			t.Error(err)
		}
		b.gets()
		a.sends(etherFrame(all, mac(1), nil, 60))
		if got := b.gets(); len(got) == 0 || !slices.Equal(got[len(got)-1], etherFrame(all, mac(1), nil, 60)) {
			t.Errorf("after %q, the other guests: %x", want, got)
		}
	}
}

func toAll() []byte {
	return append(make([]byte, frontend.Header), etherFrame(all, mac(1), nil, 60)...)
}

// holdUp makes writes to the eventfd that wakes the guest wait for ever.
func holdUp(t *testing.T, d driven) {
	t.Helper()
	_, call := d.Pair[0].Events()
	if err := unix.SetNonblock(call, false); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(call, frontend.Words(1<<64-2)); err != nil {
		t.Fatal(err)
	}
}

// TestRemoveVhostUserThatWaits removes a port whose frontend keeps another port's goroutine
// waiting.
func TestRemoveVhostUserThatWaits(t *testing.T) {
	l := newLAN(t, nil)
	a := l.guest("a", vport.Config{}, frontend.Config{})
	d := l.guest("hostile", vport.Config{}, frontend.Config{Without: frontend.EventIndex})
	holdUp(t, d)
	a.Pair[0].Send(toAll())
	nstest.Eventually(t, soon, "the frame is in the guest's memory", func() bool { return len(d.gets()) > 0 })
	if err := l.sw.RemovePort("hostile"); err != nil {
		t.Error(err)
	}
}
