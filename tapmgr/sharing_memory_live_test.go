package tapmgr_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveSharedMemoryGrows has a guest with a vhost-user NIC that gets more memory while it runs,
// from which it then takes the buffers of its frames: Linux prefers memory of the highest
// addresses. A NIC that is attached afterwards has both memories from its start. Private memory is
// refused, also when only the memory that was added is private.
func TestLiveSharedMemoryGrows(t *testing.T) {
	nstest.RequireRoot(t)
	h := newHost(t)
	s := h.runSwitch()
	g := h.sharing(testvm.Config{
		ExtraArgs:  []string{"-m", "slots=2,maxmem=1G"},
		KernelArgs: []string{"memhp_default_state=online"},
	})
	found := h.attach(s.on(g, "net0", nic.ByVhostUser))
	ctx := h.context(3 * time.Minute)
	if err := g.Guest.UseNIC(ctx, found.MAC, guestA+"/24"); err != nil {
		t.Fatal(err)
	}
	tcp, udp := served(t, s.behind(), behindTap)
	talk(t, ctx, g, "before", behindTap, tcp, udp)

	before := h.memoryOf(g)
	h.addMemory(g, "more", true)
	nstest.Eventually(t, time.Minute, "the guest has more memory", func() bool {
		return h.memoryOf(g) > before+100<<10
	})
	talk(t, ctx, g, "with more memory", behindTap, tcp, udp)
	if diff := h.check(); len(diff) > 0 {
		t.Errorf("check %+v", diff)
	}
	second := h.attach(s.on(g, "net1", nic.ByVhostUser))
	h.detach(g, "net0")
	if err := g.Guest.UseNIC(ctx, second.MAC, guestB+"/24"); err != nil {
		t.Fatal(err)
	}
	talk(t, ctx, g, "by a NIC of both memories", behindTap, tcp, udp)
	h.detach(g, "net1")

	h.addMemory(g, "private", false)
	_, err := h.Attach(h.context(20*time.Second), s.on(g, "net0", nic.ByVhostUser))
	if !errors.Is(err, nic.ErrHandover) || !strings.Contains(err.Error(), `memory "private" is not shared`) {
		t.Errorf("a guest with private memory: %v", err)
	}
	h.nothingLeft(g, "net0")
	s.noSockets(g)
}

// addMemory plugs 128 MiB of memory into the guest.
func (h *host) addMemory(g *guest, id string, share bool) {
	h.Helper()
	ctx := h.context(20 * time.Second)
	c, err := qmp.Dial(ctx, g.QMP)
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	err = c.Execute(ctx, "object-add",
		map[string]any{"qom-type": "memory-backend-memfd", "id": id, "size": 128 << 20, "share": share}, nil)
	if err == nil {
		err = c.Execute(ctx, "device_add", map[string]any{"driver": "pc-dimm", "id": id + "-dimm", "memdev": id}, nil)
	}
	if err != nil {
		h.Fatal(err)
	}
}

// memory returns how much memory the guest has, in KiB.
func (h *host) memoryOf(g *guest) int {
	h.Helper()
	out, err := g.Guest.Exec(h.context(20*time.Second), "cat", "/proc/meminfo")
	if err != nil {
		h.Fatal(err)
	}
	_, rest, _ := strings.Cut(out, "MemTotal:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		h.Fatalf("no MemTotal in %q", out)
	}
	n, err := strconv.Atoi(fields[0])
	if err != nil {
		h.Fatal(err)
	}
	return n
}
