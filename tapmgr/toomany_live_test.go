package tapmgr_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// filled starts a hostile process that has f open as often as it may, or n times, and waits until
// it has.
func (h *host) filled(n int, argv string, f *os.File) *exec.Cmd {
	h.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.Fatal(err)
	}
	defer r.Close()
	cmd := h.hostileTo(w, order{Fill: n}, argv, f)
	_ = w.Close()
	line := make([]byte, len("filled"))
	if n, err := r.Read(line); err != nil || string(line[:n]) != "filled" {
		h.Fatalf("process %d: %q, %v", cmd.Process.Pid, line[:n], err)
	}
	return cmd
}

// libvirtsGuest is the command line of a guest, as libvirt starts it.
func libvirtsGuest(name string) string {
	return "qemu-system-x86_64 -name guest=" + name +
		" -chardev socket,id=charmonitor,fd=3,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control"
}

// markNamed gives a macvtap the alias of one that was handed to a libvirt guest.
func (h *host) markNamed(name, vm string) {
	h.Helper()
	h.ip("link", "set", "dev", name, "alias",
		fmt.Sprintf(
			"vmnet vm=%s nic=net0 type=macvtap source=eth0 mode=bridge rx=allmulti mac=52:54:00:00:00:01 model=virtio-net-pci queues=1 via=libvirt",
			vm))
}

// TestLiveAllPIDsTooManyFilesKeepNothingAlive: a user has more files than are looked at, and calls
// the process like the guest that has left a macvtap. That is removed nevertheless; what another
// guest of the same user's holds is not.
func TestLiveAllPIDsTooManyFilesKeepNothingAlive(t *testing.T) {
	nstest.RequireFirstPIDNS(t)
	h := newHost(t)
	h.wire()
	for _, vm := range []string{"dead", "gone", "web"} {
		h.namedMacvtap(vm + "-m")
		h.markNamed(vm+"-m", vm)
	}
	node, _ := h.fifo("tap9") // called like a macvtap's
	h.filled(10_000, libvirtsGuest("dead"), node)
	queue := h.openMacvtap("web-m")
	holder := h.hostile(order{Hold: true}, libvirtsGuest("web"), queue)
	if err := queue.Close(); err != nil {
		t.Fatal(err)
	}
	nics, err := h.List("")
	if err != nil || len(nics) != 3 {
		t.Fatalf("listed %+v, %v", nics, err)
	}
	for _, n := range nics {
		if n.VM == "web" && n.PID != holder.Process.Pid || n.VM != "web" && n.State != nic.LeftOver {
			t.Errorf("listed %+v", n)
		}
	}
	actions, remain, err := h.Host().Ended(h.context(20*time.Second), "dead")
	if err != nil || remain || len(actions) != 1 || !actions[0].Changed || actions[0].Error != "" {
		t.Errorf("ended: %+v, remain %v, %v", actions, remain, err)
	}
	if actions, remain, err := h.Host().Ended(h.context(20*time.Second), "web"); err != nil ||
		!remain || len(actions) != 0 {
		t.Errorf("still held: %+v, remain %v, %v", actions, remain, err)
	}
	all, err := h.Reconcile(h.context(20*time.Second), false)
	if _, gone := h.nl.Link("gone-m"); err != nil || !errors.Is(gone, fs.ErrNotExist) {
		t.Errorf("reconcile: %+v, %v", all, err)
	}
	if _, err := h.nl.Link("web-m"); err != nil {
		t.Errorf("what a guest holds: %v: %+v", err, all)
	}
}

// TestPrepareKilledAtEveryStep kills the hook's part of a guest's start. No device is ever
// without its record, by which the guest's end removes it.
func TestPrepareKilledAtEveryStep(t *testing.T) {
	h := newUserHost(t)
	h.wire()
	specs := map[string]nic.Spec{
		"tap":     {Bridge: "br0"},
		"macvtap": {Lower: &nic.Lower{Kind: "macvtap", Device: "eth0", Mode: "bridge"}},
	}
	for kind, spec := range specs {
		spec.VM, spec.NIC, spec.Queues, spec.Vhost = "a-guest-of-a-long-name", "net0", 1, nic.VhostOff
		names := h.stepNamesOf(func() error { _, err := h.Host().Prepare(h.context(10*time.Second), spec); return err })
		if len(names) < 4 {
			t.Fatalf("%s: steps %q", kind, names)
		}
		for _, name := range names {
			for _, after := range []bool{false, true} {
				what := fmt.Sprintf("%s: killed at %s, done %v", kind, name, after)
				cmd := h.command(order{Spec: spec, Prepare: true, KillAt: name, After: after})
				out, err := cmd.CombinedOutput()
				if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%s: not killed: %v: %s", what, err, out)
				}
				h.recorded(what, spec.VM)
				if actions, err := h.Host().Release(h.context(20*time.Second), spec.VM); err != nil ||
					strings.Contains(fmt.Sprint(actions), "left alone") {
					t.Errorf("%s: release: %+v, %v", what, actions, err)
				}
				if left := h.devices(); len(left) > 0 {
					t.Fatalf("%s: left %q", what, left)
				}
			}
		}
	}
}

// recorded demands that each device that a guest has carries an alias that says so.
func (h *host) recorded(what, vm string) {
	h.Helper()
	for name, alias := range h.devices() {
		if !strings.HasPrefix(alias, "vmnet vm="+vm+" ") {
			h.Errorf("%s: %s has the alias %q", what, name, alias)
		}
	}
}

// devices are the aliases of all taps and macvtaps, by their names. A tap that nobody holds any
// more goes soon.
func (h *host) devices() map[string]string {
	h.Helper()
	found := map[string]string{}
	for _, kind := range []string{"tun", "macvtap"} {
		links, err := h.nl.Links(kind, 0)
		if err != nil {
			h.Fatal(err)
		}
		for _, l := range links {
			found[l.Name] = l.Alias
		}
	}
	return found
}

// openMacvtap opens a queue of a macvtap of the host's netns by a node of its number, as a
// container has one.
func (h *host) openMacvtap(name string) (queue *os.File) {
	h.Helper()
	l, err := h.nl.Link(name)
	if err != nil {
		h.Fatal(err)
	}
	node := filepath.Join(h.TempDir(), fmt.Sprintf("tap%d", l.Index))
	number := fmt.Sprintf("/sys/class/net/%s/macvtap/tap%d/dev", name, l.Index)
	err = h.ns.Do(func() (err error) {
		// sysfs shows the netns of who mounts it.
		h.run("unshare", "-m", "sh", "-c", `mount -t sysfs none /sys && mknod "$0" c $(tr : ' ' <"$1")`, node, number)
		queue, err = os.OpenFile(node, os.O_RDWR|syscall.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		h.Fatalf("open %s: %v", name, err)
	}
	h.Cleanup(func() { _ = queue.Close() })
	return queue
}
