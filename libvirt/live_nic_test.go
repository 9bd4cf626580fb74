package libvirt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
	"vmnet/internal/nstest"
	"vmnet/libvirt/domainxml"
)

func (l *live) monitor(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	reply, err := c.MonitorCommand(ctx, dom, `{"execute":"query-name"}`)
	if err != nil || !strings.Contains(reply, `"name":"standing"`) {
		t.Errorf("%s, %v", reply, err)
	}
	reply, received, err := c.MonitorCommandWithFiles(ctx, dom, `{"execute":"query-status"}`)
	if err != nil || len(received) != 0 || !strings.Contains(reply, `"running":false`) {
		t.Errorf("%s, %v, %v", reply, received, err)
	}
	reply, err = c.MonitorCommand(ctx, dom, `{"execute":"no-such-command"}`)
	if err != nil || !strings.Contains(reply, `"error"`) {
		t.Errorf("%s, %v", reply, err)
	}
}

// files passes one end of a pipe to QEMU and checks that QEMU has it.
func (l *live) files(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 20*time.Second)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	before, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	reply, received, err := c.MonitorCommandWithFiles(ctx, dom,
		`{"execute":"getfd","arguments":{"fdname":"vmnet-test"}}`, w)
	if err != nil || len(received) != 0 || !strings.Contains(reply, `"return":{}`) {
		t.Fatalf("%s, %v, %v", reply, received, err)
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if n := held(l.daemon.QEMU("standing"), link); n != 1 {
		t.Errorf("QEMU holds %s %d times", link, n)
	}
	if n := held(l.daemon.PID(), link); n != 0 {
		t.Errorf("libvirtd holds %s %d times", link, n)
	}
	if flags, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0); err != nil ||
		flags&unix.O_NONBLOCK != before&unix.O_NONBLOCK {
		t.Errorf("flags %#x, before %#x, %v", flags, before, err)
	}
	_ = w.Close()
	if _, err := c.MonitorCommand(ctx, dom, `{"execute":"closefd","arguments":{"fdname":"vmnet-test"}}`); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil { // ends only if nobody else holds the other end
		t.Error(err)
	}
	// QEMU accepts one file per command; libvirt refuses more, and the connection stays usable.
	if _, _, err := c.MonitorCommandWithFiles(ctx, dom, `{"execute":"query-name"}`, r, r); err == nil {
		t.Error("two files were taken")
	}
	if _, err := c.MonitorCommand(ctx, dom, `{"execute":"query-name"}`); err != nil {
		t.Error(err)
	}
}

func held(pid int, target string) (n int) {
	procfd.Of(pid, func(f procfd.File) {
		if f.Target == target {
			n++
		}
	})
	return n
}

func liveNIC(t *testing.T) string {
	t.Helper()
	text, err := domainxml.Ethernet{
		Tap: liveTap, MAC: []byte{2, 0, 0, 0, 0, 1}, MTU: 1400,
		Alias: "ua-vmnet-net0",
	}.XML()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (l *live) interfaces(t *testing.T, c *Conn, dom Domain) []domainxml.Interface {
	t.Helper()
	def := l.definition(t, c, dom, 0)
	if def.ID < 1 {
		t.Errorf("id %d", def.ID)
	}
	return def.Interfaces
}

func (l *live) definition(t *testing.T, c *Conn, dom Domain, flags XMLFlags) *domainxml.Definition {
	t.Helper()
	text, err := c.XML(within(t, 20*time.Second), dom, flags)
	if err != nil {
		t.Fatal(err)
	}
	def, err := domainxml.Parse(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return def
}

func (l *live) nic(t *testing.T) {
	c, dom := l.dial(t)
	other, _ := l.dial(t)
	ctx := within(t, 60*time.Second)
	s, err := other.Subscribe(ctx, &dom, 16, DeviceAdded, DeviceRemoved, DeviceRemovalFailed)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	isOurs := func(e Event) bool { return e.Device == "ua-vmnet-net0" }
	for range 2 {
		if err := c.AttachDevice(ctx, dom, liveNIC(t), AffectLive); err != nil {
			t.Fatal(err)
		}
		if e := receive(t, s, isOurs); e.Kind != DeviceAdded {
			t.Errorf("%+v", e)
		}
		nics := l.interfaces(t, c, dom)
		if len(nics) != 1 || nics[0].Type != "ethernet" || nics[0].Target != liveTap ||
			!nics[0].Unmanaged || nics[0].MTU != 1400 ||
			nics[0].Alias != "ua-vmnet-net0" || nics[0].Model != "virtio" ||
			nics[0].MAC.String() != "02:00:00:00:00:01" || !strings.HasPrefix(nics[0].Address, "0000:0") {
			t.Errorf("%+v", nics)
		}
		if err := c.DetachDeviceAlias(ctx, dom, "ua-vmnet-net0", AffectLive); err != nil {
			t.Fatal(err)
		}
		if e := receive(t, s, isOurs); e.Kind != DeviceRemoved {
			t.Errorf("%+v", e)
		}
		if nics := l.interfaces(t, c, dom); len(nics) != 0 {
			t.Errorf("left: %+v", nics)
		}
	}
	var refusal *Error
	if err := c.DetachDeviceAlias(ctx, dom, "ua-vmnet-net0", AffectLive); !errors.As(err, &refusal) {
		t.Errorf("detach again: %v", err)
	}
}

// queues: the number must match the tap.
func (l *live) queues(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 60*time.Second)
	for _, test := range []struct {
		tap    string
		queues int
		ok     bool
	}{{liveTap, 2, false}, {liveMultiTap, 1, false}, {liveMultiTap, 2, true}} {
		x, err := domainxml.Ethernet{
			Tap: test.tap, MAC: []byte{2, 0, 0, 0, 0, 2}, Queues: test.queues,
			Alias: "ua-vmnet-net1",
		}.XML()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AttachDevice(ctx, dom, x, AffectLive); (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		} else {
			t.Logf("%+v: %v", test, err)
		}
	}
	nics := l.interfaces(t, c, dom)
	if len(nics) != 1 || nics[0].Queues != 2 || nics[0].Target != liveMultiTap || nics[0].Alias != "ua-vmnet-net1" {
		t.Errorf("%+v", nics)
	}
	link := "/dev/net/tun"
	if n := held(l.daemon.QEMU("standing"), link); n != 2 {
		t.Errorf("QEMU holds %d queues", n)
	}
}

// drivers are accepted with a link state and an MTU for the guest; the tap keeps its own.
func (l *live) drivers(t *testing.T) {
	c, dom := l.dial(t)
	ctx := within(t, 60*time.Second)
	for _, driver := range []string{"qemu", "vhost"} {
		// which libvirt 9.0 accepts for a guest without KVM and ignores
		n := domainxml.Ethernet{
			Tap: liveTap, MAC: []byte{2, 0, 0, 0, 0, 3}, LinkDown: true, Driver: driver, MTU: 1300,
			Alias: domainxml.Alias("net3"),
		}
		l.attached(t, c, dom, n, func(got domainxml.Interface) {
			if got.Driver != driver || !got.LinkDown || got.MTU != 1300 || domainxml.AliasNIC(got.Alias) != "net3" {
				t.Errorf("%+v", got)
			}
			if link := l.sh(t, "ip -o link show "+liveTap); !strings.Contains(link, "mtu 1500 ") ||
				strings.Contains(link, "UP") {
				t.Error(link)
			}
		})
		if err := c.DetachDeviceAlias(ctx, dom, n.Alias, AffectLive); err == nil {
			t.Error("it is still there")
		}
	}
}

// macvtap hands over a macvtap by name, with one queue and with two. The device stays.
func (l *live) macvtap(t *testing.T) {
	c, dom := l.dial(t)
	const name, index = "vmmv0", "917233471"
	node := "/dev/tap" + index
	l.sh(t, "ip link add vmlow0 type veth peer name vmlow1; ip link add link vmlow0 name "+name+" index "+index+
		" type macvtap mode bridge")
	if _, err := os.Stat(node); err != nil { // no devtmpfs
		device := l.sh(t, "mount -t sysfs sysfs /sys; cat /sys/class/net/"+name+"/macvtap/tap"+index+"/dev")
		l.sh(t, "mknod "+node+" c "+strings.Replace(device, ":", " ", 1))
		t.Cleanup(func() { _ = os.Remove(node) })
	}
	for queues := 1; queues <= 2; queues++ {
		n := domainxml.Ethernet{
			Tap: name, MAC: []byte{2, 0, 0, 0, 0, 4}, Queues: queues,
			Alias: domainxml.Alias("net4"),
		}
		l.attached(t, c, dom, n, func(got domainxml.Interface) {
			if got.Target != name || !got.Unmanaged || max(got.Queues, 1) != queues {
				t.Errorf("%+v", got)
			}
			if open := held(l.daemon.QEMU("standing"), node); open != queues {
				t.Errorf("QEMU holds %d queues, not %d", open, queues)
			}
		})
		l.sh(t, "ip link show "+name)
	}
}

// attached calls look while n is attached to the domain.
func (l *live) attached(t *testing.T, c *Conn, dom Domain, n domainxml.Ethernet, look func(domainxml.Interface)) {
	t.Helper()
	ctx := within(t, 60*time.Second)
	text, err := n.XML()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AttachDevice(ctx, dom, text, AffectLive); err != nil {
		t.Fatal(err)
	}
	nics := l.interfaces(t, c, dom)
	if i := slices.IndexFunc(nics, func(i domainxml.Interface) bool { return i.Alias == n.Alias }); i < 0 {
		t.Errorf("%s is not in %+v", n.Alias, nics)
	} else {
		look(nics[i])
	}
	if err := c.DetachDeviceAlias(ctx, dom, n.Alias, AffectLive); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 30*time.Second, "the guest releases "+n.Alias, func() bool {
		return !slices.ContainsFunc(l.interfaces(t, c, dom), func(i domainxml.Interface) bool {
			return i.Alias == n.Alias
		})
	})
}

// sh runs a script in the daemon's network namespace and a mount namespace of its own.
func (l *live) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+l.ns.Path(), "unshare", "-m", "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}
