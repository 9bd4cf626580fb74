package tapmgr_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/vmm/qemu"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveASetuidProgramIsNoGuest: the user who starts a set-user-ID program chooses its command
// line and its open files. That does not make it root's guest.
func TestLiveASetuidProgramIsNoGuest(t *testing.T) {
	for name, program := range map[string]string{
		"runs for its starter": "/usr/bin/passwd",
		"becomes root's":       setuidCopy(t),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			g := &guest{name: h.name("web")}
			pid := h.forgeQEMU(program, g.name)
			spec := g.spec("net0")
			for _, spec.PID = range []int{0, pid} {
				_, err := h.Attach(h.context(10*time.Second), spec)
				if !errors.Is(err, qemu.ErrNotFound) || !errors.Is(err, pidfd.ErrDoubtful) ||
					!strings.Contains(err.Error(), fmt.Sprintf("process %d", pid)) {
					t.Errorf("attach with --pid %d: %v: want the process named, and why it is not trusted",
						spec.PID, err)
				}
			}
			gone := tapmgr.DetachSpec{Target: nic.Target{VM: g.name}, NIC: "net0"}
			if res, err := h.Detach(h.context(10*time.Second), gone); err != nil || res.Changed {
				t.Errorf("detach: %+v, %v: want nothing to do", res, err)
			}

			real := &guest{testvm.StartT(t, testvm.Config{Name: g.name, Paused: true}), g.name}
			if nic := h.attach(real.spec("net0")); nic.Interface == "" {
				t.Errorf("%+v", nic)
			}
			if nics, err := h.List(g.name); err != nil || len(nics) != 1 || nics[0].PID != real.Pid() {
				t.Errorf("list %+v, %v: want the NIC of process %d", nics, err, real.Pid())
			}
		})
	}
}

// TestLiveLibvirtASetuidProgramIsNoGuest: nor does it come before a libvirt guest, even if
// it claims to be that guest.
func TestLiveLibvirtASetuidProgramIsNoGuest(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.virt.NewGuest(h, testvm.Domain{Name: h.name("web")})
	g.Start()
	uuid := strings.TrimSpace(h.virt.Virsh("domuuid", g.Name))
	for name, args := range map[string][]string{
		"a guest of its own": nil,
		"libvirt's": {
			"-uuid", uuid, "-chardev", "socket,id=charmonitor,fd=9,server=on", "-mon",
			"chardev=charmonitor,id=monitor,mode=control",
		},
	} {
		h.forgeQEMU(setuidCopy(t), g.Name, args...)
		var steps []string
		h.Run = func(_ context.Context, list []step.Step) error {
			for _, s := range list {
				steps = append(steps, s.Text)
			}
			return nil
		}
		_, err := h.Attach(h.context(20*time.Second), h.spec(g, "net0"))
		if text := strings.Join(steps, "\n"); err != nil || !strings.Contains(text, "libvirt: attach") {
			t.Errorf("beside %s: %v, %s: want it to be libvirt's", name, err, text)
		}
	}
}
