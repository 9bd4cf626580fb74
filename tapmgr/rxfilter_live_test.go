package tapmgr_test

import (
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

// farPings pings from the far end of the wire.
func (h *host) farPings(addr string) error {
	return h.far.Do(func() error {
		_, err := traffic.SendPing(h.context(20*time.Second),
			traffic.Ping{Addr: addr, UntilFirst: true, Count: 3, Timeout: time.Second})
		return err
	})
}

// follow asks the guest once, as vmnet watch does, and tells the device.
func (h *host) follow() (x tapmgr.Mirror, changed bool) {
	h.Helper()
	all, err := h.Mirrors(h.context(30 * time.Second))
	if err != nil || len(all) != 1 {
		h.Fatalf("mirrors %+v, %v", all, err)
	}
	x = all[0]
	var f qmp.RxFilter
	ctx := h.context(20 * time.Second)
	err = h.WithMonitor(ctx, x, func(c *qmp.Conn) (err error) {
		f, err = c.RxFilter(ctx, x.Device)
		return err
	})
	if err != nil || f.Name != x.Device {
		h.Fatalf("filter %+v, %v", f, err)
	}
	if f.Promiscuous { // the driver has not said yet what it wants
		changed, err = h.TakeAll(x)
	} else {
		changed, err = h.Follow(x, groupsIn(h, f))
	}
	if err != nil {
		h.Fatal(err)
	}
	return x, changed
}

func groupsIn(tb testing.TB, f qmp.RxFilter) (groups []net.HardwareAddr) {
	tb.Helper()
	for _, text := range f.MulticastTable {
		group, err := net.ParseMAC(text)
		if err != nil {
			tb.Fatal(err)
		}
		groups = append(groups, group)
	}
	return groups
}

// followed follows until the guest's address is found from outside, which takes neighbour
// discovery: a driver joins its groups one by one.
func (h *host) followed(addr string) (x tapmgr.Mirror) {
	h.Helper()
	nstest.Eventually(h, 60*time.Second, addr+" is found", func() bool {
		x, _ = h.follow()
		return h.farPings(addr) == nil
	})
	return x
}

func (h *host) mirrored(g *guest) (yes bool, heard uint64) {
	h.Helper()
	d, err := h.Show(h.context(10*time.Second), g.name)
	if err != nil || len(d) != 1 || d[0].RxFilter != nic.RxMirror {
		h.Fatalf("shown %+v, %v", d, err)
	}
	return d[0].Mirrored, d[0].Counters.RxPackets
}

// unheard gives the guest an address whose group its device does not take in yet, and returns it. A
// device takes in a group that has another one's hash, of 8 bits (mc_hash in
// drivers/net/macvlan.c), so the first group may be heard by chance.
func (h *host) unheard(g *guest, nic nic.NIC) string {
	h.Helper()
	for _, addr := range []string{"fd00:8::7:7", "fd00:8::8:8", "fd00:8::9:9"} {
		h.use(g, nic, addr+"/64")
		if err := h.farPings(addr); err != nil {
			return addr
		}
	}
	h.Fatal("groups are heard before the guest was asked for them: this test shows nothing")
	return ""
}

func TestLiveMirrorLetsInWhatTheGuestAskedFor(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.wire()
	h.farIP("addr", "add", "fd00:8::1/64", "dev", "switch0", "nodad")
	g := h.booted(testvm.Config{})
	nic := h.attach(g.lowerSpec("net0", nic.Lower{RxFilter: nic.RxMirror}))
	if yes, _ := h.mirrored(g); yes {
		t.Error("it is mirrored before the guest was asked")
	}
	h.use(g, nic, "fd00:8::2/64")
	h.followed("fd00:8::2")
	if yes, _ := h.mirrored(g); !yes {
		t.Error("it still takes in all multicast")
	}
	_, before := h.mirrored(g)
	h.sendMulticast(80)
	if err := h.farPings("fd00:8::2"); err != nil { // comes after them
		t.Error(err)
	}
	if _, after := h.mirrored(g); after-before >= 40 {
		t.Errorf("%d frames to groups that it has not joined were heard", after-before)
	}

	// One more group: it is not heard until the guest was asked again.
	x := h.followed(h.unheard(g, nic))
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
	for _, want := range []bool{true, false} {
		if changed, err := h.TakeAll(x); err != nil || changed != want {
			t.Errorf("take all: changed is %v, want %v: %v", changed, want, err)
		}
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
	h.detach(g, "net0")
	if _, err := h.Follow(x, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a device that is gone: %v", err)
	}
}

func TestLiveMirrorOfAnUnknownFilterIsRefused(t *testing.T) {
	h := newHost(t)
	spec := (&guest{name: "x"}).lowerSpec("net0", nic.Lower{RxFilter: "some"})
	if err := spec.Validate(); !errors.Is(err, nic.ErrInvalid) ||
		!strings.Contains(err.Error(), "want allmulti, none or mirror") {
		t.Error(err)
	}
	if all, err := h.Mirrors(h.context(30 * time.Second)); err != nil || len(all) != 0 {
		t.Errorf("mirrors %+v, %v", all, err)
	}
}
