package watch

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/libvirt"
	"vmnet/macvtap/vtap"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/agent"
	"vmnet/testvm/traffic"
)

const farAddr = "fd00:8::1"

// wire adds a veth device eth0 to the host, whose peer has an address in another netns.
func (h *host) wire() (far *netns.NS) {
	h.Helper()
	far = nstest.New(h)
	h.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0", "netns", far.Path())
	h.ip("link", "set", "eth0", "up")
	for _, args := range [][]string{
		{"link", "set", "far0", "up"},
		{"addr", "add", farAddr + "/64", "dev", "far0", "nodad"},
	} {
		if out, err := exec.Command("nsenter",
			append([]string{"--net=" + far.Path(), "ip"}, args...)...).CombinedOutput(); err != nil {
			h.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	return far
}

func (h *host) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	h.Cleanup(cancel)
	return ctx
}

func mirrored(t nic.Target) nic.Spec {
	return nic.Spec{
		Target: t, NIC: "net0",
		Vhost: nic.VhostOff, Lower: &nic.Lower{Kind: vtap.Macvtap, Device: "eth0", RxFilter: nic.RxMirror},
	}
}

func (h *host) attachMirrored(spec nic.Spec) (mac string) {
	h.Helper()
	res, err := h.m.Attach(h.within(patience), spec)
	if err != nil {
		h.Fatal(err)
	}
	return res.NIC.MAC
}

// mirrors waits until the NIC accepts all multicast, or does not.
func (h *host) mirrors(vm string, want bool) {
	h.Helper()
	nstest.Eventually(h, patience, fmt.Sprintf("%s: mirrored is %v", vm, want), func() bool {
		d, err := h.m.Show(h.within(patience), vm)
		if err != nil || len(d) != 1 {
			h.Fatalf("%+v, %v", d, err)
		}
		return d[0].Mirrored == want
	})
}

// found waits until the guest answers neighbour discovery from outside.
func (h *host) found(far *netns.NS, addr string) {
	h.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		err = far.Do(func() error {
			_, err := traffic.SendPing(h.within(patience),
				traffic.Ping{Addr: addr, UntilFirst: true, Count: 1, Timeout: time.Second})
			return err
		})
		if err == nil {
			return
		}
	}
	h.Fatalf("%s is not found: %v", addr, err)
}

// exercise lets a guest join the groups of two addresses, one after the other.
func (h *host) exercise(far *netns.NS, vm, mac string, g *agent.Guest, first, second string) {
	h.Helper()
	ctx := h.within(2 * patience)
	if err := g.UseNIC(ctx, mac, first+"/64"); err != nil {
		h.Fatal(err)
	}
	h.mirrors(vm, true)
	h.found(far, first)
	if err := g.UseNIC(ctx, mac, second+"/64"); err != nil {
		h.Fatal(err)
	}
	h.found(far, second)
	h.mirrors(vm, true)
}

func TestLiveMirrorOfAGuestWithAMonitorOfItsOwn(t *testing.T) {
	h := newHost(t)
	far := h.wire()
	name := "mirror-" + h.ns.Path()[len("/proc/"):]
	name = strings.NewReplacer("/", "-").Replace(name)
	vm := testvm.StartT(t, testvm.Config{Name: name})
	stop := h.watch(nil)
	mac := h.attachMirrored(mirrored(nic.Target{VM: name}))
	h.exercise(far, name, mac, vm.Guest, "fd00:8::2", "fd00:8::7:7")
	r, _ := h.reported("accepts multicast to", "")
	if r.Guest != name || r.NIC != "net0" || r.Err != nil {
		t.Errorf("%+v", r)
	}

	// Another client has the monitor for a long time: the NIC then accepts all multicast.
	conn, err := qmp.Dial(h.within(patience), vm.QMP)
	if err != nil {
		t.Fatal(err)
	}
	h.reported("cannot be asked", "")
	if err := vm.Guest.AddAddr(h.within(patience), linkOf(h, vm.Guest, mac), "fd00:8::9:9/64"); err != nil {
		t.Fatal(err)
	}
	h.found(far, "fd00:8::9:9")
	_ = conn.Close()
	h.mirrors(name, true)

	if err := vm.Guest.SetMAC(h.within(patience), linkOf(h, vm.Guest, mac), "52:54:00:66:66:66"); err != nil {
		t.Fatal(err)
	}
	if r, _ := h.reported("not followed", ""); r.Err == nil ||
		!strings.Contains(r.Err.Error(), "to 52:54:00:66:66:66") {
		t.Errorf("%+v", r)
	}
	stop()
	h.mirrors(name, false) // the state is correct without vmnet watch too
}

func linkOf(h *host, g *agent.Guest, mac string) string {
	h.Helper()
	l, err := g.WaitNIC(h.within(patience), mac)
	if err != nil {
		h.Fatal(err)
	}
	return l.Name
}

func TestLiveMirrorOfLibvirtsGuests(t *testing.T) {
	m := newMachine(t)
	far := m.wire()
	for i, via := range []nic.Via{nic.ViaLibvirt, nic.ViaMonitor} {
		t.Run(string(via), func(t *testing.T) {
			h := &host{TB: t, ns: m.ns, nl: m.nl, m: m.m}
			h.m.Libvirt = m.daemon.URI()
			g := m.daemon.NewGuest(t, testvm.Domain{Name: "mirror-" + string(via)})
			g.Boot()
			monitors := 0
			h.watch(m.dial, func(cfg *Config) {
				cfg.DialMonitor = func(ctx context.Context) (*libvirt.Conn, error) {
					monitors++
					return libvirt.Dialer{Path: m.daemon.Socket()}.Dial(ctx)
				}
			})
			spec := mirrored(nic.Target{VM: g.Name})
			spec.Via = via
			mac := h.attachMirrored(spec)
			h.exercise(far, g.Name, mac, g.Guest, fmt.Sprintf("fd00:8::%d:2", i+1), fmt.Sprintf("fd00:8::%d:7", i+1))
			if monitors != 1 {
				t.Errorf("%d connections to use the monitor", monitors)
			}
			m.daemon.Virsh("destroy", g.Name)
		})
	}
}

// TestLiveMirrorAsksNoOtherGuest: a QEMU with a macvtap claims to be a domain, which must not
// become tainted.
func TestLiveMirrorAsksNoOtherGuest(t *testing.T) {
	m := newMachine(t)
	m.wire()
	m.start("victim", "", "")
	dir := t.TempDir() + "/libvirt"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/monitor", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	inherited, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	own := exec.Command("nsenter", "--net="+m.ns.Path(), "qemu-system-x86_64", "-S", "-nodefaults", "-display", "none",
		"-machine", "pc,accel=tcg", "-m", "32", "-name", "guest=victim", "-qmp", "unix:"+dir+"/own,server=on,wait=off",
		"-uuid", m.daemon.Virsh("domuuid", "victim"), "-chardev", "socket,id=charmonitor,server=on,wait=off,fd=3",
		"-mon", "chardev=charmonitor,mode=control")
	own.ExtraFiles = []*os.File{inherited}
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = own.Process.Kill()
		_ = own.Wait()
	}()
	target := nic.Target{VM: "victim", PID: own.Process.Pid, QMP: dir + "/own"}
	nstest.Eventually(t, patience, "QEMU has its monitor", func() bool {
		_, err := os.Stat(dir + "/own")
		return err == nil
	})
	m.attachMirrored(mirrored(target))
	m.watch(m.dial, func(cfg *Config) {
		cfg.DialMonitor = libvirt.Dialer{Path: m.daemon.Socket()}.Dial
	})
	if r, _ := m.reported("cannot be asked", ""); r.Err == nil ||
		!strings.Contains(r.Err.Error(), "says that it is libvirt's domain victim, and so does another") {
		t.Errorf("%+v", r)
	}
	const taint = "custom monitor control commands issued"
	if strings.Contains(m.daemon.Virsh("dominfo", "victim"), taint) {
		t.Error("the domain is tainted")
	}
	m.daemon.Virsh("qemu-monitor-command", "victim", "--hmp", "info version")
	if info := m.daemon.Virsh("dominfo", "victim"); !strings.Contains(info, taint) {
		t.Errorf("this is how it would look if it were:\n%s", info)
	}
}
