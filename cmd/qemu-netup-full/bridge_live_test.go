package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// qemuSystem is the QEMU of this machine's kind.
const qemuSystem = "qemu-system-x86_64"

// qemu is a guest that the user nobody starts, with its processors stopped.
func (h *host) qemu(name string, args ...string) *exec.Cmd {
	h.Helper()
	path, err := exec.LookPath(qemuSystem)
	nstest.Require(h, "qemu", err == nil, "apt install qemu-system-x86")
	return h.command(path, append([]string{
		"-name", "guest=" + name, "-S", "-display", "none", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "32",
	}, args...)...)
}

// nicOf waits until the only NIC of a guest is there, as vmnet list tells it.
func (h *host) nicOf(vm string) (found nic.NIC) {
	h.Helper()
	h.await("the NIC of "+vm, func() error {
		nics, err := h.ListAll(h.Context(), "")
		if err != nil {
			return err
		}
		for _, n := range nics {
			if n.VM == vm {
				found = n
				return nil
			}
		}
		return fmt.Errorf("not found among %+v", nics)
	})
	return found
}

// A real QEMU calls the helper in each of its ways.
func TestLiveQEMUCallsTheHelper(t *testing.T) {
	h := newHost(t)
	h.config("policy.yaml", `rules:
- {users: ["nobody"], bridges: [br0, br1], port: [hairpin]}
profiles:
  lab: {bridge: br0, isolated: true, hairpin: true}
`)
	for name, c := range map[string]struct {
		netdev string
		port   string
	}{
		"bridge":           {"bridge,id=n0,br=br0,helper=" + h.program, ""},
		"tap":              {"tap,id=n0,br=br0,helper=" + h.program, ""},
		"with a profile":   {"tap,id=n0,helper=" + h.program + " --profile lab", "isolated;hairpin"},
		"with options":     {"bridge,id=n0,br=br0,helper=" + h.program + " --isolated", "isolated"},
		"with its bridge":  {"tap,id=n0,helper=" + h.program + " --br=br0", ""},
		"profile, any br=": {"bridge,id=n0,br=br1,helper=" + h.program + " --profile=lab", "isolated;hairpin"},
	} {
		t.Log(name)
		cmd := h.qemu("P1", "-netdev", c.netdev, "-device", "virtio-net-pci,netdev=n0")
		cmd.Stderr = os.Stderr
		guest := h.start(cmd)
		n := h.nicOf("P1")
		if n.UID != nobody || n.PID != guest.Process.Pid || n.Source != "br0" || n.Type != nic.TypeTap ||
			n.Port != c.port {
			t.Errorf("listed as %+v", n)
		}
		h.onBridge(n.Interface, "br0", c.port)
		guest.kill()
		h.gone(n.Interface)
	}
}

// onBridge looks at the port itself.
func (h *host) onBridge(name, br, port string) {
	h.Helper()
	l, err := h.nl.Link(name)
	if err != nil {
		h.Fatal(err)
	}
	b, err := bridges.Get(h.nl, br)
	if err != nil {
		h.Fatal(err)
	}
	want, err := brport.Parse(port)
	if err != nil {
		h.Fatal(err)
	}
	if l.Master != b.Index || !l.Up || l.MAC[0] != 0xfe || l.Tun == nil || l.Tun.Persist {
		h.Errorf("%+v", l)
	}
	if l.Port == nil || l.Port.Isolated != want.Isolated || l.Port.Hairpin != want.Hairpin {
		h.Errorf("port of %s: %+v, want %q", name, l.Port, port)
	}
}

func TestLiveQEMUTellsADenial(t *testing.T) {
	h := newHost(t)
	h.policy(`{users: ["*"], bridges: [br0]}`)
	for netdev, want := range map[string]string{
		"bridge,id=n0,br=br1,helper=" + h.program:                  "qemu-netup: bridge \"br1\": no line of ",
		"bridge,id=n0,br=br0,helper=" + h.program + " --hairpin":   "qemu-netup: denied: ",
		"bridge,id=n0,br=br0,helper=" + h.program + " --profile x": "qemu-netup: no profile \"x\"",
		"bridge,id=n0,br=br0,helper=" + h.program + " --vlan 9999": "qemu-netup: ",
		"tap,id=n0,br=br9,helper=" + h.program:                     "qemu-netup: bridge \"br9\": no line of ",
	} {
		r := h.do(h.qemu("P1", "-netdev", netdev))
		if r.code == 0 || !strings.Contains(r.stderr, want) || !strings.Contains(r.stderr, "bridge helper failed") {
			t.Errorf("%s: exit status %d, %s", netdev, r.code, r.stderr)
		}
	}
	if n := h.taps(); n != 0 {
		t.Errorf("%d taps are left", n)
	}
}

// A guest that QEMU's user started by the helper talks with the host.
func TestLiveGuestOfTheHelperPings(t *testing.T) {
	h := newHost(t)
	testvm.Require(t)
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 7, 1}
	vm := testvm.StartT(t, testvm.Config{
		Name: "P1", Netns: h.ns.Path(),
		NICs: []testvm.NIC{{ID: "net0", MAC: mac.String(), Netdev: "bridge,br=br0,helper=" + h.program}},
	})
	ctx := h.context(time.Minute)
	err := vm.Guest.UseNIC(ctx, mac.String(), "10.7.0.2/24")
	if err == nil {
		_, err = vm.Guest.Ping(ctx, hostAddr)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Whenever it is killed, nothing is left.
func TestLiveKilledHelper(t *testing.T) {
	h := newHost(t)
	done := 0
	for n := range 60 {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		theirs := os.NewFile(uintptr(fds[1]), "socket")
		cmd := h.command(h.program, "--use-vnet", "--fd=3", "--br=br0")
		cmd.ExtraFiles = []*os.File{theirs}
		helper := h.start(cmd)
		// not a wait: how far it is when it is killed
		time.Sleep(time.Duration(n) * 150 * time.Microsecond)
		helper.kill()
		theirs.Close()
		if helper.ProcessState.Success() {
			done++
		}
		_ = unix.Close(fds[0])
	}
	t.Logf("%d of 60 were done before", done)
	h.await("no tap", func() error {
		if n := h.taps(); n != 0 {
			return fmt.Errorf("%d taps are left", n)
		}
		return nil
	})
}

// A client that has gone, or never reads, costs it no more than itself.
func TestLiveClientsThatDoNotRead(t *testing.T) {
	h := newHost(t)
	t.Run("gone", func(t *testing.T) {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
			ours, theirs := pair(t, kind)
			ours.Close()
			h.refuses(theirs, "sendmsg")
			if n := h.taps(); n != 0 {
				t.Errorf("%d taps are left", n)
			}
		}
	})
	t.Run("unconnected", func(t *testing.T) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		h.refuses(os.NewFile(uintptr(fd), "socket"), "sendmsg")
	})
	t.Run("full, not blocking", func(t *testing.T) {
		ours, theirs := pair(t, unix.SOCK_STREAM)
		defer ours.Close()
		fill(t, theirs)
		h.refuses(theirs, "sendmsg")
	})
	t.Run("full, blocking", func(t *testing.T) {
		ours, theirs := pair(t, unix.SOCK_STREAM)
		fill(t, theirs)
		if err := unix.SetNonblock(int(theirs.Fd()), false); err != nil {
			t.Fatal(err)
		}
		cmd := h.command(h.program, "--fd=3", "--br=br0")
		cmd.ExtraFiles = []*os.File{theirs}
		helper := h.start(cmd)
		theirs.Close()
		h.await("the tap", func() error {
			if h.taps() != 1 {
				return fmt.Errorf("it is not there")
			}
			return nil
		})
		ours.Close() // which ends the wait by EPIPE
		<-helper.done
		if helper.ProcessState.ExitCode() != 1 || h.taps() != 0 {
			t.Errorf("%v, %d taps", helper.ProcessState, h.taps())
		}
	})
	t.Run("never read", func(t *testing.T) {
		ours, theirs := pair(t, unix.SOCK_STREAM)
		cmd := h.command(h.program, "--fd=3", "--br=br0")
		cmd.ExtraFiles = []*os.File{theirs}
		if r := h.do(cmd); r.code != 0 {
			t.Errorf("%+v", r)
		}
		theirs.Close()
		if h.taps() != 1 { // it is in the socket
			t.Errorf("%d taps", h.taps())
		}
		ours.Close()
		h.await("no tap", func() error {
			if n := h.taps(); n != 0 {
				return fmt.Errorf("%d taps", n)
			}
			return nil
		})
	})
}

func pair(t *testing.T, kind int) (ours, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
}

// fill leaves no room in a socket, which does not block then.
func fill(t *testing.T, f *os.File) {
	t.Helper()
	fd := int(f.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for size := 64 << 10; size > 0; size /= 2 {
		for {
			if _, err := unix.Write(fd, make([]byte, size)); err != nil {
				break
			}
		}
	}
}

// refuses demands that the helper fails, with these words, and closes the socket.
func (h *host) refuses(theirs *os.File, want string) {
	h.Helper()
	cmd := h.command(h.program, "--use-vnet", "--fd=3", "--br=br0")
	cmd.ExtraFiles = []*os.File{theirs}
	h.fails(h.do(cmd), exitFailure, want)
	theirs.Close()
}

// The limit of NICs holds for requests at the same time.
func TestLiveHelpersAtTheSameTime(t *testing.T) {
	h := newHost(t)
	h.policy(`{users: ["*"], bridges: [br0], nics: 3}`)
	type run struct {
		helper *task
		sock   *os.File
		stderr *bytes.Buffer
	}
	var runs []run
	for range 8 {
		ours, theirs := pair(t, unix.SOCK_STREAM)
		cmd := h.command(h.program, "--use-vnet", "--fd=3", "--br=br0")
		cmd.ExtraFiles = []*os.File{theirs}
		stderr := &bytes.Buffer{}
		cmd.Stderr = stderr
		runs = append(runs, run{h.start(cmd), ours, stderr})
		theirs.Close()
	}
	had := 0
	for _, r := range runs {
		<-r.helper.done
		if r.helper.ProcessState.Success() {
			had++
		} else if !strings.Contains(r.stderr.String(), "denied: ") {
			t.Errorf("%v: %s", r.helper.ProcessState, r.stderr)
		}
	}
	if had > 3 || had != h.taps() {
		t.Errorf("%d have one, and there are %d taps", had, h.taps())
	}
	for _, r := range runs {
		r.sock.Close()
	}
}

func FuzzBridgeArgs(f *testing.F) {
	for _, seed := range []string{
		"--use-vnet --br=br0 --fd=3", "--fd=0x3 --br=", "--profile lab --fd=3",
		"--vlan 7 --br=br0 --fd=3", "--", "--trunk=1-5 --fd=7 --br=x", "--fd=99999999999999",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		var o bridgeOptions
		if err := o.parse(args); err != nil {
			if err.Error() == "" || o.bridge != "" && len(err.Error()) > 10*len(line)+1000 {
				t.Errorf("%q: error %q", line, err)
			}
			return
		}
		last := ""
		for _, arg := range args {
			if value, ok := strings.CutPrefix(arg, "--fd="); ok {
				last = value
			}
		}
		if o.fd < 0 || strconv.Itoa(o.fd) != last {
			t.Errorf("%q: fd %d", line, o.fd)
		}
		if o.bridge == "" && o.profile == "" && !strings.Contains(line, "--br=") {
			t.Errorf("%q: %+v", line, o)
		}
	})
}
