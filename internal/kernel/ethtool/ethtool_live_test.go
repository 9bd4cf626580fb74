package ethtool

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestLiveNoTxChecksums(t *testing.T) {
	ns := nstest.New(t)
	nl := nstest.Handle(t, ns)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "v0"
	if err := nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "v1"}); err != nil {
		t.Fatal(err)
	}
	// What veth says of itself (veth_get_link_ksettings), and what a link that is not there does.
	if got, none := Speed(ns, "v0"), Speed(ns, "v2"); got != 10e9 || none != 0 {
		t.Errorf("speeds %d and %d", got, none)
	}
	sums := func() uint32 {
		on, err := request(ns, "v0", value{cmd: unix.ETHTOOL_GTXCSUM})
		if err != nil {
			t.Fatal(err)
		}
		return on
	}
	if sums() == 0 {
		t.Fatal("off at first")
	}
	if err := NoTxChecksums(ns, "v0"); err != nil || sums() != 0 {
		t.Errorf("not off: %v", err)
	}
	for _, name := range []string{"v2", "0123456789abcdef"} {
		if err := NoTxChecksums(ns, name); err == nil ||
			!strings.HasPrefix(err.Error(), "ethtool -K "+name+" tx off: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
