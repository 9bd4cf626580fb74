package macvlan_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
)

func TestMain(m *testing.M) {
	if os.Getenv(barrenEnv) != "" {
		os.Exit(barren())
	}
	if os.Getenv(oldEnv) != "" {
		os.Exit(old())
	}
	leaktest.Main(m)
}

// wire is a netns with a parent device, eth0, and the other end of its veth pair, far0.
type wire struct {
	testing.TB
	ns     *netns.NS
	nl     *rtnl.Conn
	parent *rtnl.Link
}

func newWire(t testing.TB) *wire {
	t.Helper()
	w := &wire{TB: t, ns: nstest.New(t)}
	w.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	w.ip("link", "set", "eth0", "up")
	w.ip("link", "set", "far0", "up")
	var err error
	if w.nl, err = rtnl.Open(w.ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.nl.Close)
	w.read()
	return w
}

func (w *wire) read() {
	w.Helper()
	var err error
	if w.parent, err = w.nl.Link("eth0"); err != nil {
		w.Fatal(err)
	}
}

func (w *wire) ip(args ...string) {
	w.Helper()
	err := w.ns.Do(func() error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			w.Logf("ip %s: %s", strings.Join(args, " "), out)
		}
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
}

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}

func (w *wire) config() vtap.Config {
	return vtap.Config{Kind: vtap.Macvtap, Name: "P2-net0", Mode: "bridge", MAC: guestMAC}
}

func (w *wire) create(cfg vtap.Config) *macvlan.Device {
	w.Helper()
	d, err := macvlan.Create(w.nl, w.parent, cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = d.Close() })
	return d
}

func TestLiveDeviceIsAsAskedForAndUnseenByTheHost(t *testing.T) {
	w := newWire(t)
	d := w.create(w.config())
	if err := errors.Join(d.OpenQueue(), d.OpenQueue(), d.Set(rtnl.Alias("x"), rtnl.AllMulti(true)),
		d.Up()); err != nil {
		t.Fatal(err)
	}
	l, err := d.Read()
	if err != nil {
		t.Fatal(err)
	}
	if l.Kind != "macvtap" || macvlan.ModeName(l) != "bridge" || l.MAC.String() != guestMAC.String() ||
		l.Index < 1<<20 ||
		l.TxQLen != 1000 || !l.Up || !l.AllMulti || l.Alias != "x" || l.MTU != w.parent.MTU ||
		l.Lower != w.parent.Index || l.LowerNS < 0 {
		t.Errorf("made %+v", l)
	}
	rt, err := rtnl.Open(d.Netns())
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	if id, err := rt.NetnsID(w.ns); err != nil || id != l.LowerNS {
		t.Errorf("its parent device is in netns %d, ours is %d, %v", l.LowerNS, id, err)
	}
	if other, err := rt.NetnsID(nstest.New(t)); err != nil || other == l.LowerNS {
		t.Errorf("another netns has the id %d, %v, as the parent device's has", other, err)
	}
	if _, err := w.nl.Link("P2-net0"); err == nil {
		t.Error("the host's netns shows it")
	}
}

// A queue does not let its holder open another one, not even root: the holder may own the node.
func TestLiveAQueueOpensNoOther(t *testing.T) {
	w := newWire(t)
	d := w.create(w.config())
	if err := errors.Join(d.OpenQueue(), d.OpenQueue()); err != nil {
		t.Fatal(err)
	}
	for _, q := range d.Queues() {
		f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", q.Fd()), os.O_RDWR, 0)
		if !errors.Is(err, syscall.EACCES) {
			t.Errorf("opened again: %v, want EACCES", err)
			_ = f.Close()
		}
	}
}

func TestLiveFramesPass(t *testing.T) {
	w := newWire(t)
	d := w.create(w.config())
	if err := errors.Join(d.OpenQueue(), d.Up()); err != nil {
		t.Fatal(err)
	}
	w.ip("addr", "add", "10.9.0.1/24", "dev", "far0")
	w.ip("neigh", "add", "10.9.0.2", "lladdr", guestMAC.String(), "dev", "far0")
	err := w.ns.Do(func() error {
		c, err := net.Dial("udp4", "10.9.0.2:7")
		if err == nil {
			_, err = c.Write([]byte("hello"))
			c.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	q := d.Queues()[0]
	frame := make(chan string, 1)
	go func() { // ends with Close, or with the frame
		b := make([]byte, 2048)
		for {
			n, err := q.Read(b)
			if err != nil || strings.Contains(string(b[:n]), "hello") {
				frame <- string(b[:n])
				return
			}
		}
	}()
	select {
	case f := <-frame:
		if !strings.Contains(f, "hello") || f[10:16] != string(guestMAC) {
			t.Errorf("frame %x", f)
		}
	case <-time.After(20 * time.Second):
		w.ip("link", "delete", "eth0") // ends the read
		t.Fatalf("no frame came: %x", <-frame)
	}
}

// TestLiveDeviceLivesAsLongAsAnyOfItsFDs finds out by passthru whether the device is gone: the
// kernel allows it only for a single device on the parent device.
func TestLiveDeviceLivesAsLongAsAnyOfItsFDs(t *testing.T) {
	for name, dup := range map[string]func(*macvlan.Device) int{
		"queue": func(d *macvlan.Device) int { return int(d.Queues()[0].Fd()) },
		"netns": func(d *macvlan.Device) int { return int(d.Netns().Handle()) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t)
			d := w.create(w.config())
			if err := errors.Join(d.OpenQueue(), d.Up()); err != nil {
				t.Fatal(err)
			}
			fd, err := syscall.Dup(dup(d))
			if err != nil {
				t.Fatal(err)
			}
			kept := os.NewFile(uintptr(fd), name)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if w.isFree() {
				t.Error("the device ended while a copy was open")
			}
			kept.Close()
			nstest.Eventually(t, 20*time.Second, "the device goes", w.isFree)
		})
	}
}

func (w *wire) isFree() bool {
	w.Helper()
	cfg := w.config()
	cfg.Mode, cfg.MAC = "passthru", nil
	d, err := macvlan.Create(w.nl, w.parent, cfg)
	if err == nil {
		err = d.Close()
		return err == nil
	}
	if !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "passthru allows only one device") {
		w.Errorf("passthru with a sibling: %v", err)
	}
	return false
}

func TestLiveExplainedErrors(t *testing.T) {
	w := newWire(t)
	w.ip("link", "add", "br0", "type", "bridge")
	w.ip("link", "set", "eth0", "master", "br0")
	w.read()
	if _, err := macvlan.Create(w.nl, w.parent, w.config()); !errors.Is(err, syscall.EBUSY) ||
		!strings.Contains(err.Error(), "port of br0") {
		t.Errorf("a bridge port: got %v", err)
	}
	w.ip("link", "set", "eth0", "nomaster")
	w.ip("link", "add", "link", "eth0", "name", "host0", "type", "macvlan", "mode", "bridge")
	w.read()
	cfg := w.config()
	cfg.Mode = "passthru"
	if _, err := macvlan.Create(w.nl, w.parent, cfg); !errors.Is(err, syscall.EINVAL) ||
		!strings.Contains(err.Error(), "host0") {
		t.Errorf("passthru with a sibling: got %v", err)
	}
	first, second := w.create(w.config()), w.create(w.config())
	if err := first.Up(); err != nil {
		t.Fatal(err)
	}
	if err := second.Up(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the same MAC: got %v", err)
	}
	w.ip("link", "set", "eth0", "down")
	cfg = w.config()
	cfg.MTU = 1501
	if _, err := macvlan.Create(w.nl, w.parent, cfg); err == nil || !strings.Contains(err.Error(), "at most 1500") {
		t.Errorf("more than the parent device carries: got %v", err)
	}
	w.read()
	if _, err := macvlan.Create(w.nl, w.parent, w.config()); !errors.Is(err, syscall.ENETDOWN) ||
		!strings.Contains(err.Error(), "ip link set eth0 up") {
		t.Errorf("parent device down: got %v", err)
	}
}
