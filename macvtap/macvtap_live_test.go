package macvtap_test

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/macvtap"
	"vmnet/macvtap/vtap"
	"vmnet/qmp"
	"vmnet/testvm"
	"vmnet/testvm/lab"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}

// open makes a namespace with the parent device eth0, a veth device.
func open(t *testing.T) (*macvtap.Host, *netns.NS) {
	t.Helper()
	ns := nstest.New(t)
	for _, args := range []string{"link add eth0 type veth peer name far0", "link set eth0 up", "link set far0 up"} {
		cmd := exec.Command("nsenter", append([]string{"--net=" + ns.Path(), "ip"}, strings.Fields(args)...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	h, err := macvtap.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h, ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLiveDeviceChangesAndIsListed(t *testing.T) {
	h, _ := open(t)
	if _, err := h.Create("nosuch", vtap.Config{Kind: vtap.Macvtap, Name: "P2", Mode: "bridge"}); !errors.Is(err,
		fs.ErrNotExist) {
		t.Errorf("without a parent device: got %v, want ErrNotExist", err)
	}
	if _, err := h.Create("eth0", vtap.Config{Kind: vtap.Macvtap, Name: "P2", Mode: "l2"}); err == nil {
		t.Error("a macvtap got the mode of an ipvtap")
	}
	for _, name := range []string{"", "tap%d", "a/b", "sixteen-bytes-xx"} {
		cfg := vtap.Config{Kind: vtap.Macvtap, Name: name, Mode: "bridge"}
		if _, err := h.Create("eth0", cfg); err == nil || !strings.Contains(err.Error(), "device name") {
			t.Errorf("name %q: got %v", name, err)
		}
	}
	if wireless, err := h.IsWireless("eth0"); err != nil || wireless {
		t.Errorf("wireless: %v, %v", wireless, err)
	}
	if all, err := h.List(); err != nil || len(all) != 0 {
		t.Errorf("list: %v, %v, want nothing", all, err)
	}
	d, err := h.Create("eth0", vtap.Config{Kind: vtap.Macvtap, Name: "P2", Mode: "bridge", MTU: 1400})
	must(t, err)
	defer d.Close()
	must(t, d.SetMAC(guestMAC))
	must(t, d.SetMTU(1300))
	must(t, d.SetAlias("of P2"))
	must(t, d.SetMode("private"))
	for _, mode := range []string{"l2", "", "source"} {
		if err := d.SetMode(mode); err == nil {
			t.Errorf("mode %q was set", mode)
		}
	}
	must(t, d.SetAllMulti(true))
	must(t, d.AddAltName("the-first-network-card-of-P2"))
	must(t, d.OpenQueue())
	must(t, d.Up())
	group := []net.HardwareAddr{{0x01, 0, 0x5e, 1, 2, 3}}
	if changed, err := d.SetGroups(group); err != nil || !changed {
		t.Errorf("groups: changed is %v, %v", changed, err)
	}
	if got, err := d.Groups(); err != nil || !slices.EqualFunc(got, group, slices.Equal) {
		t.Errorf("groups: %v, %v, want %v", got, err, group)
	}
	want := macvtap.Info{
		Name: "P2", Alias: "of P2", Kind: vtap.Macvtap, Parent: "eth0", Mode: "private",
		MAC: guestMAC, MTU: 1300, Up: true,
	}
	got, err := d.Info()
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("info: %v (-want +got):\n%s", err, diff)
	}
	all, err := h.List()
	if diff := cmp.Diff([]macvtap.Info{want}, all); err != nil || diff != "" {
		t.Errorf("list: %v (-want +got):\n%s", err, diff)
	}
	must(t, d.SetSources([]net.HardwareAddr{{0x52, 0x54, 0, 9, 9, 9}}))
	if got, err := d.Info(); err != nil || got.Mode != "source" {
		t.Errorf("%+v, %v, want mode source", got, err)
	}
	must(t, d.Delete())
	if _, err := d.Info(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted: got %v, want ErrNotExist", err)
	}
	must(t, d.Delete())
}

// TestLiveDeviceLivesAsLongAsItsVMM runs QEMU as the example does, with its CPUs stopped.
func TestLiveDeviceLivesAsLongAsItsVMM(t *testing.T) {
	testvm.Require(t)
	h, _ := open(t)
	d, err := h.Create("eth0", vtap.Config{Kind: vtap.Macvtap, Name: "P2", Mode: "bridge", MAC: guestMAC})
	must(t, err)
	defer d.Close()
	must(t, d.OpenQueue())
	must(t, d.Up())
	args, err := qmp.NIC{ID: "net0", MAC: guestMAC}.Args([]int{3}, nil)
	must(t, err)
	args = append(args, "-machine", "q35", "-S", "-display", "none", "-nodefaults", "-monitor", "stdio")
	qemu := exec.CommandContext(t.Context(), "qemu-system-x86_64", args...)
	qemu.ExtraFiles = d.Queues()
	qemu.Stderr = os.Stderr
	monitor, err := qemu.StdinPipe()
	must(t, err)
	answers, err := qemu.StdoutPipe()
	must(t, err)
	must(t, qemu.Start())
	greeting := make([]byte, 4)
	if _, err := io.ReadFull(answers, greeting); err != nil || string(greeting) != "QEMU" {
		t.Errorf("the monitor greets with %q: %v", greeting, err)
	}
	must(t, d.Close())
	if all, err := h.List(); err != nil || len(all) != 1 || all[0].Name != "P2" {
		t.Errorf("while QEMU runs: %+v, %v, want P2", all, err)
	}
	must(t, monitor.Close())
	must(t, qemu.Process.Kill())
	_ = qemu.Wait()
	nstest.Eventually(t, 20*time.Second, "the device ends with QEMU", func() bool {
		all, err := h.List()
		return err == nil && len(all) == 0
	})
}

func TestLiveNetnsKeepsTheDevice(t *testing.T) {
	h, _ := open(t)
	d, err := h.Create("eth0", vtap.Config{Kind: vtap.Macvtap, Name: "P2", Mode: "bridge", MAC: guestMAC})
	must(t, err)
	ns, err := d.Netns()
	must(t, err)
	must(t, d.Close())
	must(t, d.Close())
	if all, err := h.List(); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v, want the device", all, err)
	}
	must(t, ns.Close())
	nstest.Eventually(t, 20*time.Second, "the device ends with its namespace", func() bool {
		all, err := h.List()
		return err == nil && len(all) == 0
	})
}

func TestLabIPVtap(t *testing.T) {
	lab.Inside(t)
	h, _ := open(t)
	addr := netip.MustParsePrefix("10.9.0.2/24")
	d, err := h.Create("eth0", vtap.Config{
		Kind: vtap.IPVtap, Name: "P2", Mode: "l2", Flag: "private",
		Addrs: []netip.Prefix{addr},
	})
	must(t, err)
	defer d.Close()
	must(t, d.AddAddr(addr))
	must(t, d.SetMode("l3"))
	if err := d.SetMode("bridge"); err == nil {
		t.Error("an ipvtap got the mode of a macvtap")
	}
	if err := d.SetSources([]net.HardwareAddr{guestMAC}); err == nil {
		t.Error("an ipvtap got source addresses")
	}
	if got, err := d.Info(); err != nil || got.Kind != vtap.IPVtap || got.Mode != "l3" || got.Flag != "private" {
		t.Errorf("%+v, %v, want an ipvtap in mode l3, private", got, err)
	}
}

func TestLiveOpenRefuses(t *testing.T) {
	for _, name := range []string{"/dev/null", "/nonexistent", ".."} {
		if _, err := macvtap.Open(name); err == nil {
			t.Errorf("%s is a network namespace", name)
		}
	}
}

// TestLiveExample runs the example of the documentation, which needs root.
func TestLiveExample(t *testing.T) {
	_, ns := open(t)
	must(t, ns.Do(func() error { ExampleHost_Create(); return nil }))
}
