package network

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/tun"
	"vmnet/internal/network/config"
	"vmnet/internal/network/managers"
	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// nmHost is a host whose interfaces NetworkManager has, with its files below root.
type nmHost struct {
	*h
	root, tree string
	daemon     *exec.Cmd
}

const (
	nmConf = "[main]\nplugins=keyfile\nauth-polkit=false\ndns=none\n[keyfile]\npath=ROOT/etc/NetworkManager/" +
		"system-connections\n"
	// wired is the profile of the host's interface, as nmcli writes it.
	wired = "[connection]\nid=wired\nuuid=5b7c1b8e-5f4a-4c1e-9d52-0a3c5e7f9b11\ntype=ethernet\ninterface-name=up0\n\n" +
		"[ethernet]\n\n[ipv4]\naddress1=" + hostIP + "/24," + wanIP + "\nmethod=manual\n\n[ipv6]\n" +
		"addr-gen-mode=eui64\naddress1=" + hostIP6 + "/64," + wanIP6 + "\nmethod=manual\n"
	busConf = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=ROOT/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/>
<allow send_type="signal"/><allow receive_type="method_call"/><allow receive_type="method_return"/>
<allow receive_type="error"/><allow receive_type="signal"/></policy></busconfig>`
)

// newNMHost starts NetworkManager on a host whose up0 has a profile. It has none for lan0.
func newNMHost(t *testing.T) *nmHost {
	x := &nmHost{h: newLAN(t), root: t.TempDir(), tree: nmTree(t)}
	for path, text := range map[string]string{
		"etc/NetworkManager/NetworkManager.conf":                   nmConf,
		"etc/NetworkManager/system-connections/wired.nmconnection": wired,
		"etc/NetworkManager/conf.d/README":                         "",
		"run/dbus/bus.conf":                                        busConf,
	} {
		path = filepath.Join(x.root, path)
		text = strings.ReplaceAll(text, "ROOT", x.root)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	x.background("dbus-daemon", "--config-file="+x.root+"/run/dbus/bus.conf", "--nofork", "--nopidfile")
	nstest.Eventually(t, patience, "the bus listens", func() bool {
		c, err := net.Dial("unix", x.root+"/run/dbus/system_bus_socket")
		return err == nil && c.Close() == nil
	})
	x.m.Managers = &managers.Host{Root: x.root, Run: func(_ context.Context, argv ...string) error {
		_, err := x.nmcli(argv[1:]...)
		return err
	}}
	for _, family := range []string{"-4", "-6"} {
		x.ip(x.host, family, "addr", "flush", "dev", "up0")
	}
	t.Cleanup(func() {
		if log, err := os.ReadFile(x.root + "/log"); t.Failed() {
			t.Logf("NetworkManager's log: %s, %v", log, err)
		}
	})
	x.start()
	return x
}

// nmTree returns the directory in which NetworkManager is. setup.sh unpacks it, since it would take
// the machine's own interfaces if it were installed.
func nmTree(t *testing.T) string {
	for _, dir := range []string{
		os.Getenv("VMNET_CACHE") + "/network-manager", testvm.SystemCacheDir + "/network-manager", "/",
	} {
		if _, err := os.Stat(dir + "/usr/sbin/NetworkManager"); err == nil {
			return dir
		}
	}
	nstest.Require(t, "networkmanager", false, "sh testvm/setup.sh --network-manager")
	return ""
}

func (x *nmHost) t() *testing.T { return x.TB.(*testing.T) }

func (x *nmHost) env() []string {
	return append(os.Environ(), "LC_ALL=C",
		"DBUS_SYSTEM_BUS_ADDRESS=unix:path="+x.root+"/run/dbus/system_bus_socket")
}

// background runs a program in the host's namespace until the test ends, or until it is stopped.
func (x *nmHost) background(argv ...string) *exec.Cmd {
	x.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=" + x.host.Path()}, argv...)...)
	cmd.Env, cmd.Stderr = x.env(), os.Stderr
	if err := cmd.Start(); err != nil {
		x.Fatal(err)
	}
	x.t().Cleanup(func() { end(cmd) })
	return cmd
}

func end(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
}

// start starts NetworkManager, to which run is /run. With a /sys that is read-only it does not wait
// for udev.
func (x *nmHost) start() {
	x.Helper()
	const script = `set -e
exec >"$1/log" 2>&1
mount --make-rprivate /
mount --bind "$1/run" /run
mount -t tmpfs tmpfs /var/lib
mount -t sysfs -o ro sysfs /sys
exec "$2/usr/sbin/NetworkManager" --debug --config="$1/etc/NetworkManager/NetworkManager.conf" \
	--config-dir="$1/etc/NetworkManager/conf.d"`
	x.daemon = x.background("unshare", "--mount", "sh", "-c", script, "sh", x.root, x.tree)
	nstest.Eventually(x, patience, "NetworkManager answers", func() bool {
		_, err := x.nmcli("general")
		return err == nil
	})
}

func (x *nmHost) stop() { end(x.daemon) }

func (x *nmHost) nmcli(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, x.tree+"/usr/bin/nmcli", args...)
	cmd.Env = x.env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// has waits until NetworkManager has devices in those states, each DEVICE:STATE:CONNECTION.
func (x *nmHost) has(want ...string) {
	x.Helper()
	got := ""
	for end := time.Now().Add(patience); time.Now().Before(end); {
		got, _ = x.nmcli("-t", "-f", "DEVICE,STATE,CONNECTION", "device")
		missing := false
		for _, w := range want {
			missing = missing || !strings.Contains("\n"+got, "\n"+w+"\n")
		}
		if !missing {
			return
		}
		time.Sleep(20 * time.Millisecond) // not a wait: a poll
	}
	x.Fatalf("NetworkManager has\n%swant %s", got, strings.Join(want, ", "))
}

// addresses waits until a link has the host's addresses, and the host is reached by them.
func (x *nmHost) addresses(link string) {
	x.Helper()
	nstest.Eventually(x, patience, link+" has the host's addresses", func() bool {
		out, err := x.run(x.host, "ip", "-o", "addr", "show", "dev", link, "up")
		return err == nil && strings.Contains(out, hostIP+"/24") && strings.Contains(out, hostIP6+"/64")
	})
	nstest.Eventually(x, patience, "the host is reached by "+link, func() bool {
		return x.ask(x.host, wanIP+":7") == hostIP && x.ask(x.host, "["+wanIP6+"]:7") == hostIP6
	})
}

// TestLiveNetworkManager: NetworkManager leaves the devices of networks alone, also when it reads
// its files again. A move of the host's addresses lasts, and after the next boot NetworkManager
// makes the bridge, which is the network's.
func TestLiveNetworkManager(t *testing.T) {
	x := newNMHost(t)
	x.answers(x.wan, ":7")
	x.has("up0:connected:wired")
	x.addresses("up0")

	// As vmnet doctor tells: otherwise NetworkManager gives the host an address on a guest's tap.
	const cure = "[keyfile]\nunmanaged-devices+=type:tun\n"
	if err := os.WriteFile(x.root+"/etc/NetworkManager/conf.d/vmnet.conf", []byte(cure), 0o644); err != nil {
		t.Fatal(err)
	}
	x.create(onLAN("lan0"))
	x.create(&config.Network{Name: "lab", NAT: true, DHCP: true})
	tap, err := tun.Create(x.host, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	x.ip(x.host, "link", "set", "tap0", "addrgenmode", "none")
	x.ip(x.host, "link", "set", "tap0", "master", "lab", "up")
	x.has("lan:unmanaged:", "lan0:unmanaged:", "lab:unmanaged:", "lab-srv:unmanaged:", "tap0:unmanaged:")
	x.consistent()
	if out := x.ip(x.host, "-o", "addr"); strings.Contains(out, " tap0 ") || strings.Contains(out, " lan0    inet ") {
		t.Errorf("addresses: %s", out)
	}
	if out := x.ip(x.host, "-o", "link", "show", "master", "lab", "up"); !strings.Contains(out, " tap0:") {
		t.Errorf("ports of lab: %s", out)
	}
	for _, name := range []string{"lan", "lab"} {
		if err := x.m.Delete(x.ctx(), name, true); err != nil {
			t.Fatal(err)
		}
	}
	x.moves()
}

// moves moves what the host has on up0, and back.
func (x *nmHost) moves() {
	w := moving()
	x.guarded(time.Minute)
	if err := x.m.Create(x.ctx(), w); err != nil {
		x.Fatal(err)
	}
	x.deleted("lan")
	x.addresses("lan")
	if _, err := x.m.ConfirmMove(x.ctx(), "lan"); err != nil {
		x.Fatal(err)
	}
	x.m.Confirm = 0
	boot, err := x.m.NextBoot(w.Network, true)
	if err != nil || boot.Manager != "NetworkManager" || len(boot.Files) != 2 {
		x.Fatalf("%+v, %v", boot, err)
	}
	x.create(&config.Network{Name: "lab", NAT: true}) // has NetworkManager read its configuration again
	x.has("lab:unmanaged:")
	x.addresses("lan")
	x.consistent()

	for _, args := range [][]string{
		{"connection", "reload"}, {"connection", "up", "vmnet-lan"}, {"connection", "up", "vmnet-lan-uplink"},
	} {
		if out, err := x.nmcli(args...); err != nil {
			x.Fatalf("%s: %v", out, err)
		}
	}
	x.has("lan:connected:vmnet-lan", "up0:connected:vmnet-lan-uplink")
	x.addresses("lan")
	x.consistent()

	for range 2 { // the second boot is of a bridge that both have made
		x.reboot(func() {})
		x.has("lan:connected:vmnet-lan", "up0:connected:vmnet-lan-uplink")
		x.m.AwaitUplink(x.ctx(), "lan")
		x.applied()
	}
	x.reboot(func() { x.m.AwaitUplink(x.ctx(), "lan") }) // the service does not wait for anything else
	x.applied()

	if err := x.m.Delete(x.ctx(), "lan", false); err != nil {
		x.Fatal(err)
	}
	x.has("up0:connected:wired")
	x.addresses("up0")
	if out, err := x.nmcli("-t", "-f", "NAME", "connection"); err != nil || strings.Contains(out, "vmnet") {
		x.Errorf("left: %s, %v", out, err)
	}
	if out, err := x.run(x.host, "ip", "link", "show", "lan"); err == nil {
		x.Errorf("left: %s", out)
	}
}

// reboot has the host begin again with nothing but its files.
func (x *nmHost) reboot(then func()) {
	x.Helper()
	x.stop()
	if err := os.RemoveAll(x.root + "/run/NetworkManager"); err != nil {
		x.Fatal(err)
	}
	x.ip(x.host, "link", "del", "up0")
	x.ip(x.host, "link", "del", "lan")
	x.cable(x.host, "up0", "", "", x.wan, "e0", wanIP+"/24", wanIP6+"/64")
	x.ip(x.host, "link", "set", "up0", "down")
	x.start()
	then()
}

// applied applies the network after a boot.
func (x *nmHost) applied() {
	x.Helper()
	if _, _, err := x.m.Apply(x.ctx(), "lan"); err != nil {
		x.Fatal(err)
	}
	x.has("lan:connected:vmnet-lan", "up0:connected:vmnet-lan-uplink")
	x.addresses("lan")
	x.consistent()
	if _, changed, err := x.m.Apply(x.ctx(), "lan"); err != nil || changed {
		x.Errorf("a second apply: %v, changed %v", err, changed)
	}
}
