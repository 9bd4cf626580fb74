package main

import (
	"os"
	"strings"
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Each form works through the program with the privilege, setuid or capability. The program that it
// executes has no privilege by itself.
func TestLiveEveryFormWithEitherRight(t *testing.T) {
	h := newHost(t).withVMNet()
	up, down := h.scripts()
	for _, c := range []struct {
		name string
		mode os.FileMode
		caps []byte
	}{
		{"setuid", 0o755 | os.ModeSetuid, nil},
		{"capability", 0o755, fileCaps(cap.NET_ADMIN)},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := h.in(t)
			h.reconfigure(c.mode, c.caps)

			for kind, helper := range map[string]string{"front": h.program, "full": h.program + " --isolated"} {
				guest := h.start(h.qemu("P1", "-netdev", "tap,id=n0,helper="+helper+" --br=br0", "-device",
					"virtio-net-pci,netdev=n0"))
				n := h.nicOf("P1")
				if n.UID != nobody || n.Source != "br0" || (n.Port == "isolated") != (kind == "full") {
					t.Errorf("%s: %+v", kind, n)
				}
				guest.kill()
				h.gone(n.Interface)
			}
			h.ok(h.nobodys(launchArgs("/bin/sh", "-c",
				"grep -E 'Cap|NoNew' /proc/self/status; id -ru; id -u; ip -br link show P3-net0; env")...),
				"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
				"CapAmb:\t0000000000000000", "NoNewPrivs:\t0", "65534\n65534\n", "\nXDG_RUNTIME_DIR=")

			queue := h.held("vm" + c.name[:3])
			h.ok(h.do(h.with(queue, up, "vm"+c.name[:3])))
			if br, l := h.port("vm" + c.name[:3]); br != "br0" || !l.Up {
				t.Errorf("on %q: %+v", br, l)
			}
			h.ok(h.do(h.with(queue, down, "vm"+c.name[:3])))

			qemu := h.plainQEMU("N2")
			h.ok(h.attach("N2", "net0", "--bridge", "br0", "--queues", "2"), "2 queues")
			qemu.kill()
			h.gone("N2-net0")
			h.ok(h.nobodys("--version"), "qemu-netup ")
			h.fails(h.nobodys("--bridge", "br0"), exitUsage, "the program is missing")
		})
	}
}

// A user who executes the full program directly gets no privilege, whatever the arguments.
func TestLiveFullHasNoRightByItself(t *testing.T) {
	h := newHost(t)
	up, _ := h.scripts()
	for _, env := range [][]string{nil, {"VMNET_HANDED_OVER=1", "_PATH=/bin"}} {
		cmd := h.command(h.full, launchArgs("/bin/true")...)
		cmd.Env = append(cmd.Env, env...)
		h.fails(h.do(cmd), exitFailure, "CAP_NET_ADMIN is missing")
		cmd = h.command(h.full, "--br=br0", "--fd=0")
		cmd.Env = env
		h.fails(h.do(cmd), exitFailure, "fd 0")
		cmd = h.with(h.held("vm"+string(rune('0'+len(env)))), h.full, "vm"+string(rune('0'+len(env))))
		cmd.Args[0], cmd.Env = up, env
		h.fails(h.do(cmd), exitFailure, "CAP_NET_ADMIN is missing")
	}
	if n := h.taps(); n != 2 {
		t.Errorf("%d taps instead of the 2 that were there", n)
	}
}

// A program with a privilege becomes what it was built for, not what lies beside it.
func TestLiveTheRightGoesToNoNeighbour(t *testing.T) {
	i := install(t)
	i.full = i.path("elsewhere")
	i.build(i.program, "../qemu-netup")
	for name, mode := range map[string]os.FileMode{"": 0o755, "no such file or directory": 0o755 | os.ModeSetuid} {
		if err := os.Chmod(i.program, mode); err != nil {
			t.Fatal(err)
		}
		out, err := i.as(nobody, "--version").CombinedOutput()
		if failed := name != ""; (err != nil) != failed || failed && !strings.Contains(string(out), i.full+": "+name) {
			t.Errorf("mode %v: %v: %s", mode, err, out)
		}
	}
}

// The privilege passes only to a program that root alone can change, and never to one that the
// caller chooses.
func TestLiveTheRightGoesNowhereElse(t *testing.T) {
	h := newHost(t)
	evil := h.own("evil")
	h.copy(evil+"/qemu-netup-full", "/bin/true", 0o755)
	cmd := h.command(h.program, "--version")
	cmd.Dir, cmd.Env = evil, []string{"PATH=" + evil, "VMNET_HANDED_OVER=1", "_PATH=" + evil}
	h.ok(h.do(cmd), "qemu-netup ")
	for name, spoil := range map[string]func() error{
		"users other than root may write " + h.full: func() error { return os.Chmod(h.full, 0o775) },
		"permission denied":                         func() error { return os.Chmod(h.full, 0o700) },
		"no such file or directory":                 func() error { return os.Remove(h.full) },
	} {
		full, err := os.ReadFile(h.full)
		if err == nil {
			err = spoil()
		}
		if err != nil {
			t.Fatal(err)
		}
		r := h.nobodys(launchArgs("/bin/true")...)
		if r.code != exitFailure || !strings.Contains(r.stderr, "execute "+h.full) ||
			!strings.Contains(r.stderr, name) {
			t.Errorf("%s: exit status %d: %s", name, r.code, r.stderr)
		}
		// What QEMU asks its bridge helper for does not need that program.
		guest := h.start(h.qemu("P1", "-netdev", "bridge,id=n0,br=br0,helper="+h.program, "-device",
			"virtio-net-pci,netdev=n0"))
		n := h.nicOf("P1")
		guest.kill()
		h.gone(n.Interface)
		if err := os.WriteFile(h.full, full, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(h.full, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
