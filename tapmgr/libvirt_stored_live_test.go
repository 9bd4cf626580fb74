package tapmgr_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"vmnet/internal/libvirthook/declared"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// isStored demands that libvirt has the NIC's interface stored, and declared for the hook.
func (h *libvirtHost) isStored(name, nic string) {
	h.Helper()
	if out := h.virt.Virsh("dumpxml", "--inactive", name); !strings.Contains(out, "ua-vmnet-"+nic) ||
		!strings.Contains(out, `id="`+nic+`"`) {
		h.Errorf("it is not stored:\n%s", out)
	}
}

// TestLiveLibvirtStored stores a NIC that is plugged, and plugs one that is stored.
func TestLiveLibvirtStored(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.domain(testvm.Domain{})
	spec := h.stored(g, "net0")
	live := spec
	live.Persistent = false
	h.attach(live)
	h.virt.Virsh("metadata", g.Name, declared.Namespace, "--live", "--remove") // as vmnet left it once
	for _, want := range []bool{true, false} {
		if res, err := h.Attach(h.context(20*time.Second), live); err != nil || res.Changed != want {
			t.Errorf("declared: changed %v, want %v: %v", res.Changed, want, err)
		}
		if out := h.virt.Virsh("metadata", g.Name, declared.Namespace); !strings.Contains(out, `id="net0"`) {
			t.Errorf("declared: %s", out)
		}
	}
	for _, changed := range []bool{true, false} {
		res, err := h.Attach(h.context(20*time.Second), spec)
		if err != nil || res.Changed != changed {
			t.Errorf("stored: changed %v, want %v: %v", res.Changed, changed, err)
		}
		h.isStored(g.Name, "net0")
	}
	h.take(g, "net0")

	// What was stored before stays, whatever fails.
	for _, step := range []string{"declare", "port", "attach-device", "lifetime", "verify"} {
		h.at(step, func(do func() error) error { return errors.Join(do(), errFault) })
		if _, err := h.Attach(h.context(20*time.Second), spec); !errors.Is(err, errFault) ||
			strings.Contains(err.Error(), "undo") {
			t.Errorf("%s: got %v, want only the fault", step, err)
		}
		h.isStored(g.Name, "net0")
	}
	h.Run = nil
	h.attach(spec)
	h.isStored(g.Name, "net0")
	h.take(g, "net0")
	other := spec
	other.MAC = []byte{0x52, 0x54, 0, 0, 0, 0x77}
	if _, err := h.Attach(h.context(20*time.Second), other); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "stored another NIC as ua-vmnet-net0") {
		t.Errorf("another NIC: %v", err)
	}
	h.isStored(g.Name, "net0")

	// What virsh leaves of it, we take out.
	h.virt.Virsh("detach-interface", g.Name, "ethernet", "--mac", nic.DefaultMAC(g.Name, "net0").String(), "--config")
	for _, changed := range []bool{true, false} {
		res, err := h.Detach(h.context(20*time.Second),
			tapmgr.DetachSpec{Target: h.target(g), NIC: "net0", Persistent: true})
		if err != nil || res.Changed != changed {
			t.Errorf("detach: %+v, want changed %v: %v", res, changed, err)
		}
		h.nothingLeft(g, "net0")
	}
}
