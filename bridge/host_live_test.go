package bridge_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// TestLiveHost uses a Host as programs outside of this module do.
func TestLiveHost(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	ns := nstest.New(t)
	var h *bridge.Host
	if err := ns.Do(func() (err error) { h, err = bridge.Open(""); return err }); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(h.Create(bridge.Config{Name: "br0"}))
	must(h.Create(bridge.Config{Name: "other"}))
	if _, err := h.Ensure(bridge.Config{Name: "br0"}); err != nil {
		t.Error(err)
	}
	if err := h.AddPort("nosuch", "other", brport.Settings{}); err == nil {
		t.Error("a bridge that does not exist took a port")
	}
	if err := h.RemovePort("nosuch"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a link that does not exist: got %v, want ErrNotExist with its name", err)
	}
	all, err := h.List()
	if err != nil || len(all) != 2 {
		t.Errorf("%v, %v: want two bridges", all, err)
	}
	if info, err := h.Show("br0"); err != nil || info.Name != "br0" {
		t.Errorf("%+v, %v", info, err)
	}
	must(h.Delete("other", false))
	must(h.Delete("br0", false))
	if _, err := bridge.Open("/dev/null"); err == nil {
		t.Error("/dev/null is a network namespace")
	}
}

// TestLiveHostPorts sets up a port by its name.
func TestLiveHostPorts(t *testing.T) {
	ns := nstest.New(t)
	h, err := bridge.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	tap, err := tun.Create(ns, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(text string) {
		t.Helper()
		if got, err := h.ReadPort("br0", "tap0"); err != nil || got.String() != text {
			t.Errorf("the port is %q, %v, want %q", got, err, text)
		}
	}
	must(h.Create(bridge.Config{Name: "br0"}))
	must(h.AddPort("br0", "tap0", brport.Settings{Isolated: true}))
	want("isolated")
	must(h.SetPort("br0", "tap0", brport.Settings{Hairpin: true}))
	want("hairpin")
	for _, lacking := range []bool{true, false} {
		if changed, err := h.AddSettings("br0", "tap0", brport.Settings{NoFlood: true}); err != nil ||
			changed != lacking {
			t.Errorf("changed is %v, %v, want %v", changed, err, lacking)
		}
	}
	want("hairpin;noflood")

	frame := make([]byte, 10+60) // a vnet header, then the frame
	copy(frame[10:], "\xff\xff\xff\xff\xff\xff\x52\x54\x00\x01\x02\x03\x88\xb5")
	if _, err := tap.Queues()[0].Write(frame); err != nil {
		t.Fatal(err)
	}
	learned, err := h.Learned("br0", "tap0")
	if diff := cmp.Diff([]brport.Learned{{MAC: "52:54:00:01:02:03"}}, learned); err != nil || diff != "" {
		t.Errorf("learned: %v (-want +got):\n%s", err, diff)
	}

	must(h.RemovePort("tap0"))
	for what, err := range map[string]error{
		"read":  func() error { _, err := h.ReadPort("br0", "tap0"); return err }(),
		"set":   h.SetPort("br0", "tap0", brport.Settings{Isolated: true}),
		"learn": func() error { _, err := h.Learned("nosuch", "tap0"); return err }(),
		"add":   func() error { _, err := h.AddSettings("br0", "nosuch", brport.Settings{}); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: no error without the port", what)
		}
	}
}

// TestLiveExample runs the example of the documentation, which needs root.
func TestLiveExample(t *testing.T) {
	ns := nstest.New(t)
	tap, err := tun.Create(ns, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	err = ns.Do(func() error {
		ExampleOpen()
		h, err := bridge.Open("")
		if err != nil {
			return err
		}
		defer h.Close()
		info, err := h.Show("br0")
		if err == nil && (len(info.Ports) != 1 || !strings.Contains(info.Ports[0].Config.String(), "isolated")) {
			t.Errorf("br0 is %+v, want tap0 as its only port, isolated", info)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
