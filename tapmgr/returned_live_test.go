package tapmgr_test

import (
	"errors"
	"io/fs"
	"testing"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/tapmgr/nic"
)

// replaced deletes br0 and makes it again.
func (h *host) replaced() {
	h.Helper()
	h.ip("link", "del", "br0")
	h.bridge(bridge.Config{Name: "br0"})
}

// on demands where a tap is, and whether it is up.
func (h *host) on(name, want string, up bool) {
	h.Helper()
	l, err := h.nl.Link(name)
	if err != nil {
		h.Fatal(err)
	}
	got := ""
	if l.Master != 0 {
		got = h.masterOf(l)
	}
	if got != want || l.Up != up {
		h.Errorf("%s is on %q and up is %v, want %q and %v", name, got, l.Up, want, up)
	}
}

func TestPutBackAfterTheBridge(t *testing.T) {
	h := newUserHost(t)
	h.persistentTaps("a", "off", "moved", "other", "young", "attaching", "plain")
	h.markOurs("a", "off", "moved", "other", "young")
	alias := func(name, text string) { h.ip("link", "set", "dev", name, "alias", text) }
	alias("a",
		"vmnet vm=dead nic=a type=tap source=br0 port=isolated mac=52:54:00:00:00:01 model=virtio-net-pci queues=1")
	alias("attaching",
		"vmnet vm=dead nic=attaching type=tap source=br0 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1 state=attaching")
	alias("other", "vmnet vm=dead nic=other type=tap source=br7 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1")
	alias("plain", "vmnet plain uid=0 source=br0 port=hairpin")
	h.bridge(bridge.Config{Name: "br1"})
	h.ip("link", "set", "moved", "master", "br1")
	h.replaced()
	h.ip("link", "del", "young") // made after the bridge, and on none by somebody's will
	h.persistentTaps("young")
	h.markOurs("young")

	actions, err := h.Host().PutBack("br0", "br1", "br9")
	if err != nil {
		t.Fatal(err)
	}
	done := map[string]bool{}
	for _, a := range actions {
		done[a.Interface] = a.Changed && a.Error == "" && a.Action == "put back on br0"
	}
	if len(done) != 3 || !done["a"] || !done["off"] || !done["plain"] {
		t.Errorf("actions %+v", actions)
	}
	for name, want := range map[string]string{
		"a": "br0", "off": "br0", "plain": "br0", "moved": "br1", "other": "",
		"young": "", "attaching": "",
	} {
		h.on(name, want, want == "br0")
	}
	br, _ := h.nl.Link("br0")
	for name, want := range map[string]string{"a": "isolated", "off": "", "plain": "hairpin"} {
		l, _ := h.nl.Link(name)
		if cfg, err := bridges.ReadPort(h.nl, br, l); err != nil || cfg.String() != want {
			t.Errorf("port %s is %q, want %q: %v", name, cfg, want, err)
		}
	}
	if again, err := h.Host().PutBack("br0"); err != nil || len(again) != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if none, err := h.Host().PutBack("br9"); err != nil || len(none) != 0 {
		t.Errorf("no bridge: %+v, %v", none, err)
	}
	if foreign, err := h.Host().ForeignWithoutMaster(); err != nil || foreign {
		t.Errorf("foreign taps are reported although there is none: %v", err)
	}
}

func TestPutBackForeign(t *testing.T) {
	h := newUserHost(t)
	h.likeLibvirt("vnet7")
	isolated := brport.Settings{Isolated: true}
	put := func(want bool) {
		t.Helper()
		if done, err := h.Host().PutBackForeign("vnet7", foreignMAC, "br0", isolated); done != want || err != nil {
			t.Errorf("done is %v, want %v: %v", done, want, err)
		}
	}
	put(false) // it is there
	h.ip("link", "set", "vnet7", "nomaster")
	put(false) // somebody has taken it off
	for _, up := range []bool{true, false} {
		h.replaced()
		if !up {
			h.ip("link", "set", "vnet7", "down")
		}
		put(true)
		h.on("vnet7", "br0", up)
	}
	h.replaced()
	if foreign, err := h.Host().ForeignWithoutMaster(); err != nil || !foreign {
		t.Errorf("the foreign tap is not told: %v", err)
	}
	if done, err := h.Host().PutBackForeign("vnet7", foreignMAC, "br0", brport.Settings{VLAN: 10}); err == nil ||
		!done {
		t.Errorf("VLANs on a bridge that does not filter: %v, %v", done, err)
	}
	h.on("vnet7", "", false)
	if _, err := h.Host().PutBackForeign("vnet8", foreignMAC, "br0", isolated); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no tap: %v", err)
	}
	if _, err := h.Host().PutBackForeign("vnet7", foreignMAC, "br8", isolated); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no bridge: %v", err)
	}
	h.ip("link", "set", "vnet7", "alias", "vmnet plain uid=0")
	put(false)
}

func TestSetForeignPortOf(t *testing.T) {
	h := newUserHost(t)
	h.likeLibvirt("vnet7")
	l, err := h.nl.Link("vnet7")
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := h.Host().SetForeignPortOf(l.Index, foreignMAC, brport.Settings{Isolated: true}); !changed ||
		err != nil {
		t.Errorf("changed is %v: %v", changed, err)
	}
	if _, err := h.Host().SetForeignPortOf(l.Index, nic.DefaultMAC("x", "y"), brport.Settings{}); !errors.Is(err,
		fs.ErrNotExist) {
		t.Errorf("another MAC: %v", err)
	}
	if _, err := h.Host().SetForeignPortOf(1<<30, foreignMAC, brport.Settings{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no link: %v", err)
	}
}
