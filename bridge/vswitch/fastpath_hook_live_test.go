package vswitch_test

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"vmnet/bridge/vswitch"
)

// hooks returns the links at the TCX hook of a device.
func hooks(t *testing.T, h *host, device string) []link.ID {
	t.Helper()
	var ids []link.ID
	index := h.link(device).Attrs().Index
	err := h.ns.Do(func() error {
		found, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		for _, p := range found.Programs {
			id, _ := p.LinkID()
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func hooked(t *testing.T, h *host, device string) int { return len(hooks(t, h, device)) }

// TestLiveFastPathDetached takes the program from the hook, as an administrator may. One frame may
// be lost on each processor, and then all come to the switch.
func TestLiveFastPathDetached(t *testing.T) {
	l := newFastLAN(t, 2, vswitch.Config{})
	l.hasten(0, 1, 1, 2)
	for _, id := range hooks(t, l.host, "t0") {
		k, err := link.NewFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Detach(); err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	lost := 0
	for range 100 {
		l.write(0, l.frame(1, 2, 46))
		if l.read(1, 2, 200*time.Millisecond) == nil {
			lost++
		}
	}
	if cpus, err := ebpf.PossibleCPU(); err != nil || lost > cpus {
		t.Errorf("%d of 100 frames are lost: %v", lost, err)
	}
}
