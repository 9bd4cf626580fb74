package tapmgr_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/access/plaintap"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

const (
	hostAddr  = "10.7.0.1"
	guestAddr = "10.7.0.2"
)

// host is a netns with br0 in it, and a Manager for it.
type host struct {
	testing.TB
	ns *netns.NS
	nl *rtnl.Conn
	*tapmgr.Manager
	guests int
	far    *netns.NS // where the cable of wire ends
}

func newHost(t testing.TB) *host {
	t.Helper()
	return hostIn(t, nstest.New(t))
}

// newUserHost is newHost for a test that needs no root: what it makes is real, and its guests are
// fake (fakeguest_test.go).
func newUserHost(t testing.TB) *host {
	t.Helper()
	nstest.RequireTun(t)
	return hostIn(t, nstest.NewInUserNS(t))
}

func hostIn(t testing.TB, ns *netns.NS) *host {
	t.Helper()
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	m, err := tapmgr.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	h := &host{TB: t, ns: ns, nl: nl, Manager: m}
	h.bridge(bridge.Config{Name: "br0", Addresses: []netip.Prefix{netip.MustParsePrefix(hostAddr + "/24")}})
	return h
}

// List is the Manager's, within the test.
func (h *host) List(vm string) ([]nic.NIC, error) {
	h.Helper()
	return h.Manager.List(h.context(30*time.Second), vm)
}

// onUnseen has f called with what could not be seen.
func (h *host) onUnseen(f func(text string)) {
	h.Progress = func(kind tapmgr.ProgressKind, text string) {
		if kind == tapmgr.Unseen {
			f(text)
		}
	}
}

func (h *host) bridge(cfg bridge.Config) {
	h.Helper()
	if err := h.bridges().Create(cfg); err != nil {
		h.Fatal(err)
	}
}

// deleteBridge deletes a bridge, and releases its ports.
func (h *host) deleteBridge(name string) error { return h.bridges().Delete(name, true) }

func (h *host) bridges() *bridge.Host {
	h.Helper()
	b, err := bridge.Open(h.ns.Path())
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(b.Close)
	return b
}

// context bounds one operation.
func (h *host) context(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), nstest.Patience(d))
	h.Cleanup(cancel)
	return ctx
}

// name makes guest names that nothing else on this machine uses.
func (h *host) name(short string) string {
	h.guests++
	return fmt.Sprintf("%s-%s%d", short, uniqueSuffix(h.ns), h.guests)
}

// booted is a guest that is up.
func (h *host) booted(c testvm.Config) *guest {
	h.Helper()
	c.Name = h.name(cmp.Or(c.Name, "P2"))
	return &guest{testvm.StartT(h, c), c.Name}
}

// empty is a QEMU whose processors stand still: quick, and deaf to device_del.
func (h *host) empty() *guest { return h.booted(testvm.Config{Paused: true}) }

type guest struct {
	*testvm.VM
	name string
}

func (g *guest) spec(nicID string) nic.Spec {
	return nic.Spec{Target: nic.Target{VM: g.name}, NIC: nicID, Bridge: "br0", Vhost: nic.VhostOff}
}

func (h *host) attach(spec nic.Spec) nic.NIC {
	h.Helper()
	res, err := h.Attach(h.context(20*time.Second), spec)
	if err != nil {
		h.Fatal(err)
	}
	return res.NIC
}

func (h *host) detach(g *guest, nicID string) {
	h.Helper()
	_, err := h.Detach(h.context(20*time.Second), tapmgr.DetachSpec{Target: nic.Target{VM: g.name}, NIC: nicID})
	if err != nil {
		h.Fatal(err)
	}
}

// reach makes the guest use a NIC and pings the host through it.
func (h *host) reach(g *guest, nic nic.NIC, addr string) {
	h.Helper()
	if err := g.Guest.UseNIC(h.context(30*time.Second), nic.MAC, addr+"/24"); err != nil {
		h.Fatal(err)
	}
	h.ping(g)
}

func (h *host) ping(g *guest) {
	h.Helper()
	if _, err := g.Guest.Ping(h.context(10*time.Second), hostAddr); err != nil {
		h.Errorf("ping the host: %v", err)
	}
}

// gone demands that soon no link of that name is there.
func (h *host) gone(name string) {
	h.Helper()
	nstest.Eventually(h, 20*time.Second, "link "+name+" is gone", func() bool {
		_, err := h.nl.Link(name)
		return errors.Is(err, fs.ErrNotExist)
	})
}

// nothingLeft demands that of a NIC neither link nor device nor netdev is left. That no
// getfd name holds the tap is proven by the link.
func (h *host) nothingLeft(g *guest, nicID string) {
	h.Helper()
	name, _ := nic.InterfaceName(g.name, nicID)
	h.gone(name)
	if state := monitorState(h, g); strings.Contains(state, "vmnet-"+nicID) {
		h.Errorf("QEMU still has it:\n%s", state)
	}
}

// monitorState is QEMU's own word on its netdevs and devices.
func monitorState(h *host, g *guest) string {
	h.Helper()
	ctx := h.context(10 * time.Second)
	c, err := qmp.Dial(ctx, g.QMP)
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	var netdevs string
	if err := c.Execute(ctx, "human-monitor-command", map[string]any{"command-line": "info network"},
		&netdevs); err != nil {
		h.Fatal(err)
	}
	var devices []struct{ Name string }
	if err := c.Execute(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"}, &devices); err != nil {
		h.Fatal(err)
	}
	for _, d := range devices {
		netdevs += d.Name + "\n"
	}
	return netdevs
}

func uniqueSuffix(ns *netns.NS) string {
	inode, err := ns.Inode()
	if err != nil {
		return "x"
	}
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	var s []byte
	for ; inode > 0; inode /= 36 {
		s = append(s, digits[inode%36])
	}
	return string(s)
}

// PlainTap makes what qemu-netup makes in the form of qemu-bridge-helper.
func (h *host) PlainTap(bridgeName string, port brport.Settings, vnetHdr bool) (*tun.Tap, error) {
	br, err := bridges.Get(h.nl, bridgeName)
	if err != nil {
		return nil, err
	}
	return plaintap.Make(h.ns, h.nl, h.Host().Owner, br, port, vnetHdr)
}
