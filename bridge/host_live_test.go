package bridge_test

import (
	"os"
	"testing"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/nstest"
)

// TestLiveHost does by names what programs outside of this module do.
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
		t.Error("a bridge that there is not took a port")
	}
	if err := h.RemovePort("nosuch"); err == nil {
		t.Error("a link that there is not was removed")
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
