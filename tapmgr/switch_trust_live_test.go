package tapmgr_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// nobodysSwitch is a switch of another user's, which says what that one wants.
func (h *host) nobodysSwitch() *userSwitch {
	h.Helper()
	dir := h.tempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		h.Fatal(err)
	}
	s := &userSwitch{host: h, path: filepath.Join(dir, "sw")}
	h.AskSwitches, h.Switches = true, []string{s.path}
	s.cmd = h.command(order{Serve: s.path})
	s.cmd.Cancel = func() error { return nil }
	s.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	s.run()
	h.Cleanup(s.kill)
	return s
}

// TestLiveSwitchOfAnotherUserIsNotBelieved: nobody says that root's guest has a NIC there, and a
// port of root's tap.
func TestLiveSwitchOfAnotherUserIsNotBelieved(t *testing.T) {
	h := newHost(t)
	s := h.nobodysSwitch()
	g := h.empty()
	h.attach(g.spec("net0"))
	near, far, err := endpoint.SocketFiles()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	defer far.Close()
	holder, err := control.OpenHolder(g.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	label := "vmnet vm=" + g.name + " nic=net1 type=socket source=sw switch=on netns=" + s.inode() +
		" mac=52:54:00:00:00:01 model=virtio-net-pci queues=1 state=attaching"
	s.addPort(control.Port{Name: "lie", Kind: control.Socket, Label: label, Holder: g.Pid()}, holder, near)
	if nics, err := h.List(""); err != nil || len(nics) != 1 || nics[0].ID != "net0" {
		t.Errorf("list %+v, %v: want the NIC that is there", nics, err)
	}
	h.reconciled()
	if ports := s.ports(); len(ports) != 1 {
		t.Errorf("ports %+v: want them untouched", ports)
	}
}

// inode names the host's netns as labels do.
func (h *host) inode() string {
	h.Helper()
	inode, err := h.ns.Inode()
	if err != nil {
		h.Fatal(err)
	}
	return strconv.FormatUint(inode, 10)
}

// TestLiveLabelOfAnotherUserIsNotMeant: a user who gives a file such a name has the NIC listed
// with that user, and it is meant only if its process is named by its PID.
func TestLiveLabelOfAnotherUserIsNotMeant(t *testing.T) {
	h := newHost(t)
	h.runSwitch()
	label, err := procfd.NewLabel("vmnet vm=web-" + uniqueSuffix(h.ns) +
		" nic=net0 type=socket source=sw0 switch=on netns=" + h.inode() +
		" mac=52:54:00:00:00:01 model=virtio-net-pci queues=1")
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.command(order{Hold: true})
	cmd.ExtraFiles = append(cmd.ExtraFiles, label)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	if err := errors.Join(cmd.Start(), label.Close()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	vm := "web-" + uniqueSuffix(h.ns)
	if nics, err := h.List(vm); err != nil || len(nics) != 1 || nics[0].PID != cmd.Process.Pid {
		t.Errorf("list %+v, %v", nics, err)
	}
	res, err := h.Detach(h.context(10*time.Second), tapmgr.DetachSpec{Target: nic.Target{VM: vm}, NIC: "net0"})
	if err != nil || res.Changed {
		t.Errorf("detach: %+v, %v: want it passed over", res, err)
	}
	actions, err := h.Reconcile(h.context(10*time.Second), false)
	for _, a := range actions {
		if a.Changed || !strings.Contains(a.Action, "left alone") {
			t.Errorf("reconcile: %+v", a)
		}
	}
	if _, findErr := qemu.ByPID(cmd.Process.Pid); err != nil || !errors.Is(findErr, qemu.ErrNotFound) {
		t.Errorf("%v, %v", err, findErr)
	}
}
