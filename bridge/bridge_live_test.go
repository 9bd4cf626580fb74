package bridge_test

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// open returns the bridges of a new namespace, and its links as the kernel reports them.
func open(t *testing.T) (*bridge.Host, *rtnl.Conn) {
	t.Helper()
	ns := nstest.New(t)
	h, err := bridge.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	c, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return h, c
}

func TestLiveCreateShowDelete(t *testing.T) {
	h, _ := open(t)
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 7}
	cfg := bridge.Config{
		Name: "br0", MTU: 9000, MAC: mac, STP: true, Ageing: 20 * time.Second,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24"), netip.MustParsePrefix("fd00::1/64")},
	}
	if err := h.Create(cfg); err != nil {
		t.Fatal(err)
	}
	got, err := h.Show("br0")
	if err != nil {
		t.Fatal(err)
	}
	want := bridge.Info{
		Name: "br0", MAC: mac.String(), MTU: 9000, Up: true, STP: true, Ageing: 20,
		Addresses: []string{"10.1.2.3/24", "fd00::1/64"}, Ports: []bridge.Port{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("show (-want +got):\n%s", diff)
	}
	if err := h.Create(cfg); !errors.Is(err, fs.ErrExist) {
		t.Errorf("name taken: got %v, want ErrExist", err)
	}
	if err := h.Delete("br0", false); err != nil {
		t.Fatal(err)
	}
	if err := h.Delete("br0", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted twice: got %v, want ErrNotExist", err)
	}
}

func TestLiveCreateLeavesNothingWhenAStepFails(t *testing.T) {
	h, c := open(t)
	twice := netip.MustParsePrefix("10.1.2.3/24")
	if err := h.Create(bridge.Config{Name: "br0", Addresses: []netip.Prefix{twice, twice}}); err == nil {
		t.Fatal("the same address was added twice")
	}
	if _, err := c.Link("br0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the bridge was left behind: %v", err)
	}
}

func TestLiveCreateWithVLANFilteringOrNotAtAll(t *testing.T) {
	h, c := open(t)
	if err := h.Create(bridge.Config{Name: "br0"}); err != nil {
		t.Fatal(err)
	}
	br, err := c.Link("br0")
	if err != nil {
		t.Fatal(err)
	}
	err = h.Create(bridge.Config{Name: "br1", VLANFiltering: true})
	if br.Bridge.CanFilterVLANs {
		info, showErr := h.Show("br1")
		if err != nil || showErr != nil || !info.VLANFiltering || info.DefaultVLAN != 1 {
			t.Errorf("got %+v, %v, %v", info, err, showErr)
		}
		return
	}
	if !errors.Is(err, brport.ErrNotSupported) || !strings.Contains(err.Error(), "CONFIG_BRIDGE_VLAN_FILTERING") {
		t.Errorf("got %v, want ErrNotSupported with the kernel's option", err)
	}
	if _, err := c.Link("br1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the bridge was left behind: %v", err)
	}
}

// The test knows both answers. Here the kernel can filter.
func TestLabCreateWithVLANFiltering(t *testing.T) {
	lab.Inside(t)
	TestLiveCreateWithVLANFilteringOrNotAtAll(t)
}
