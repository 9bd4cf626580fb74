package why

import (
	"os"
	"path/filepath"
	"testing"

	"vmnet/internal/network/tool"
	"vmnet/internal/vmm/qmptest"
	"vmnet/macvtap"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
)

// wifi moves a simulated Wi-Fi card into the host's namespace, and returns its name.
func (s *site) wifi() string {
	s.Helper()
	if _, err := tool.Run(s.ctx(), s.ns, "", "modprobe", "mac80211_hwsim", "radios=1"); err != nil {
		s.Fatal(err)
	}
	cards, err := filepath.Glob("/sys/class/net/wlan*")
	if err != nil || len(cards) == 0 {
		s.Fatalf("no wlan: %v", err)
	}
	phy, err := os.Readlink(filepath.Join(cards[0], "phy80211"))
	if err != nil {
		s.Fatal(err)
	}
	if _, err := tool.Run(s.ctx(), nil, "", "iw", "phy", filepath.Base(phy), "set", "netns", "name",
		s.ns.Path()); err != nil {
		s.Fatal(err)
	}
	name := filepath.Base(cards[0])
	s.sh("ip link set " + name + " up")
	return name
}

// TestLabFaultsOfWiFi: a card that is a bridge's uplink, and one that has a macvtap, which vmnet
// itself makes on none.
func TestLabFaultsOfWiFi(t *testing.T) {
	lab.Inside(t)
	s := newBareHost(t)
	card := s.wifi()
	s.sh("ip link add br0 up type bridge forward_delay 0")
	h, err := macvtap.Open(s.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	d, err := h.Create(card, vtap.Config{Kind: vtap.Macvtap, Name: s.tap("net1"), Mode: "bridge", MAC: mac1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	netns, err := d.Netns()
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	alias := "vmnet vm=" + s.name + " nic=net1 type=macvtap source=" + card + " mode=bridge mac=" + mac1.String() +
		" model=virtio-net-pci queues=1"
	for _, err := range []error{d.SetAlias(alias), d.OpenQueue(), d.Up()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	first := qmptest.Start(t, qmptest.Config{Name: s.name, Monitors: -1, Files: append(d.Queues(), netns)})
	s.named(broken{name: "macvtap: Wi-Fi", nic: "net1", where: "macvtap TAP1", why: card + " is a Wi-Fi card"})
	if err := d.Delete(); err != nil { // a parent device is no port
		t.Fatal(err)
	}
	first.Kill()
	s.name += "b"
	qmptest.Start(t, qmptest.Config{Name: s.name})
	s.plug(nic.Spec{NIC: "net0", Bridge: "br0"})
	s.sh("iw dev " + card + " set 4addr on; ip link set " + card + " master br0")
	s.named(broken{name: "Wi-Fi as uplink", frame: "arp", where: "uplink " + card, why: "it is a Wi-Fi card"})
}
