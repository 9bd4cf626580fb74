package watch

import (
	"context"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/internal/nsport"
	"vmnet/internal/nstest"
)

// TestLiveEnds: an end of a namespace is put back on a bridge that was made again, with its
// settings; one that somebody has taken off its bridge is left alone.
func TestLiveEnds(t *testing.T) {
	h := newHost(t)
	ends, err := nsport.Open(h.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ends.Close)
	ends.LockDir = t.TempDir()
	attach := func(id, bridge string) {
		t.Helper()
		box := nstest.New(t)
		s := nsport.Spec{Netns: box.Path(), ID: id, Bridge: bridge, Port: brport.Settings{Isolated: true}}
		if _, err := ends.Attach(context.Background(), s); err != nil {
			t.Fatal(err)
		}
	}
	isPort := func(name, bridge string) bool {
		l, lErr := h.nl.Link(name)
		br, brErr := h.nl.Link(bridge)
		return lErr == nil && brErr == nil && l.Master == br.Index && l.Up && l.Port != nil && l.Port.Isolated
	}
	h.bridge("br1")
	attach("web", "br0")
	attach("off", "br1")
	h.ip("link", "set", "off-ns", "nomaster")
	stop := h.watch(nil, func(c *Config) { c.Ends = ends })
	for range 2 { // the second time the alias names the second bridge
		h.ip("link", "del", "br0")
		h.bridge("br0")
		nstest.Eventually(t, patience, "the end is on its bridge again", func() bool { return isPort("web-ns", "br0") })
	}
	h.reported("put back on br0", "web-ns")
	stop()

	h.ip("link", "del", "br0")
	h.bridge("br0")
	h.watch(nil, func(c *Config) { c.Ends = ends })
	nstest.Eventually(t, patience, "it is put back at the start", func() bool { return isPort("web-ns", "br0") })
	if isPort("off-ns", "br1") {
		t.Error("an end that was taken off its bridge is on it again")
	}
	if list, _, err := ends.List(context.Background()); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}
