package doctor

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/leaktest"
	"vmnet/internal/network/nft"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const helperPath = "/usr/bin/" + Helper

// withHelper is a simulated machine with a helper, which the test then changes.
func withHelper(t *testing.T, change func(helper string) error) Machine {
	t.Helper()
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	m := made(t, map[string]string{helperPath + "*": "", "/proc/self/status": "Name:\tx\nNoNewPrivs:\t0\n"})
	if err := change(m.at(helperPath)); err != nil {
		t.Fatal(err)
	}
	return m
}

func mode(mode os.FileMode) func(string) error {
	return func(helper string) error { return os.Chmod(helper, mode) }
}

func setcap(caps string) func(string) error {
	return func(helper string) error {
		return unix.Setxattr(helper, capsAttr, []byte(caps), 0)
	}
}

func TestLiveHelper(t *testing.T) {
	const setuid = 0o755 | os.ModeSetuid
	chown := func(path string, uid int) func(string) error {
		return func(helper string) error { return os.Chown(filepath.Join(filepath.Dir(helper), path), uid, -1) }
	}
	dirMode := func(mode os.FileMode) func(string) error {
		return func(helper string) error { return os.Chmod(filepath.Dir(helper), mode) }
	}
	all := func(changes ...func(string) error) func(string) error {
		return func(helper string) (err error) {
			for _, c := range changes {
				err = errors.Join(err, c(helper))
			}
			return err
		}
	}
	for _, c := range []struct {
		name   string
		change func(string) error
		want   Check
	}{
		{"none", os.Remove, Check{"helper", Warn, "NICs on userspace switches only", "make install"}},
		{"found", mode(0o755), Check{"helper", OK, helperPath, ""}},
		{"safe", mode(0o755), Check{"helper owner", OK, "no other user", ""}},
		{"without privilege", mode(0o755), Check{
			"helper right", Warn, "mode 0755 and no capabilities",
			"setcap " + helperCaps + " " + helperPath,
		}},
		{"setuid", mode(setuid), Check{"helper right", OK, "setuid root, mode 4755", ""}},
		{"setuid for a group", mode(0o750 | os.ModeSetuid), Check{"helper right", OK, "setuid root, mode 4750", ""}},
		{
			"setuid to another", all(chown(Helper, 1000), mode(setuid)),
			Check{"helper right", Fail, "setuid to uid 1000", "chown root"},
		},
		{"owned by another", chown(Helper, 1000), Check{
			"helper owner", Fail, helperPath + " belongs to uid 1000",
			"chown root " + helperPath,
		}},
		{"in another user's directory", chown(".", 1000), Check{
			"helper owner", Fail, "/usr/bin belongs to uid 1000",
			"chown root /usr/bin",
		}},
		{"writable by its group", mode(0o775), Check{"helper owner", Fail, "mode 0775", "chmod go-w " + helperPath}},
		{
			"in a writable directory",
			dirMode(0o777),
			Check{"helper owner", Fail, "/usr/bin has mode 0777", "chmod go-w /usr/bin"},
		},
		{"in a sticky directory", dirMode(0o777 | os.ModeSticky), Check{"helper owner", OK, "", ""}},
		{
			"capabilities", setcap("\x01\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
			Check{"helper right", OK, "cap_net_admin+ep, mode 0755: NICs on bridges", ""},
		},
		{
			"more capabilities",
			setcap("\x01\x00\x00\x02\x00\x10\x20\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
			Check{"helper right", OK, "cap_net_admin,cap_sys_admin,cap_mknod+ep, mode 0755", ""},
		},
		{
			"not effective", setcap("\x00\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
			Check{"helper right", Fail, "(cap_net_admin+p)", "setcap"},
		},
		{
			"another capability",
			setcap("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
			Check{"helper right", Fail, "(13+ep)", "setcap"},
		},
		{"no_new_privs", all(mode(setuid), func(helper string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(helper), "../../proc/self/status"),
				[]byte("Name:\tx\nNoNewPrivs:\t1\n"), 0o644)
		}), Check{"helper right", Warn, "no_new_privs", "outside"}},
		{"a link", all(mode(setuid), func(helper string) error {
			return errors.Join(os.Rename(helper, helper+"-1"), os.Symlink(Helper+"-1", helper))
		}), Check{"helper right", OK, "setuid root", ""}},
		{"another's link", func(helper string) error {
			return errors.Join(os.Rename(helper, helper+"-1"), os.Symlink(Helper+"-1", helper),
				os.Lchown(helper, 1000, -1))
		}, Check{
			"helper owner", Fail, "the link " + helperPath + " belongs to uid 1000",
			"chown -h root " + helperPath,
		}},
		{"a link in a writable directory", func(helper string) error {
			root := filepath.Join(filepath.Dir(helper), "../..")
			return errors.Join(os.Mkdir(root+"/open", 0o755), os.Chmod(root+"/open", 0o777),
				os.Rename(helper, root+"/real"),
				os.Symlink("../real", root+"/open/link"), os.Symlink("../../open/link", helper))
		}, Check{"helper owner", Fail, "/open has mode 0777", "chmod go-w /open"}},
	} {
		t.Run(c.name, func(t *testing.T) { wants(t, withHelper(t, c.change).helper(), c.want) })
	}
}

// A setuid program on a file system that is mounted nosuid, in a new mount namespace.
func TestLiveNoSuid(t *testing.T) {
	if dir := os.Getenv("NOSUID_DIR"); dir != "" {
		wants(t, Machine{Root: dir, Self: "/"}.helper(), Check{"helper right", Fail, "nosuid", "option suid"})
		return
	}
	m := withHelper(t, mode(0o755))
	dir := filepath.Dir(m.at(helperPath))
	script := `mount -t tmpfs -o nosuid none "$0" && install -m 4755 /dev/null "$0/` + Helper +
		`" && NOSUID_DIR="$0" "$1" -test.run '^TestLiveNoSuid$' -test.v`
	out, err := exec.Command("unshare", "--mount", "sh", "-c", script, dir, os.Args[0]).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestLiveRules(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	const conf, pol = "/etc/qemu/bridge.conf", "/etc/vmnet/policy.yaml"
	for _, c := range []struct {
		name, path, text string
		mode             os.FileMode
		want             Check
	}{
		{"none", "/etc/x", "", 0o644, Check{"bridge.conf", Warn, "there is no " + conf, "allow BRIDGE"}},
		{"good", conf, "allow br0\n", 0o640, Check{"bridge.conf", OK, "mode 0640", ""}},
		{"wrong", conf, "alow br0\n", 0o644, Check{"bridge.conf", Fail, "bridge.conf:1", "correct it"}},
		{"writable", conf, "allow br0\n", 0o666, Check{"bridge.conf", Fail, "mode 0666", "chmod go-w " + conf}},
		{
			"include", conf, "include /nonexistent/vmnet.conf\n",
			0o644,
			Check{"bridge.conf", Warn, "/nonexistent/vmnet.conf", "readable"},
		},
		{"no policy", "/etc/x", "", 0o644, Check{"policy.yaml", OK, "only the bridges in bridge.conf", ""}},
		{
			"policy", pol, "rules:\n  - {users: [root], bridges: [br0]}\n",
			0o644,
			Check{"policy.yaml", OK, "mode 0644", ""},
		},
		{
			"wrong policy", pol, "rules:\n  - {users: [root], bridge: br0}\n",
			0o644,
			Check{"policy.yaml", Fail, "policy.yaml:2", "correct it"},
		},
		{"writable policy", pol, "rules: []\n", 0o664, Check{"policy.yaml", Fail, "mode 0664", "chmod go-w " + pol}},
		{
			"hidden policy", pol, "rules:\n  - {users: [root], bridges: [br0]}\n",
			0o600,
			Check{"policy.yaml", Fail, "mode 0600: users cannot read it", ""},
		},
		{"policy without rules", pol, "rules: []\n", 0o644, Check{"policy.yaml", Warn, "without rules", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := made(t, map[string]string{c.path: c.text})
			if err := os.Chmod(m.at(c.path), c.mode); err != nil {
				t.Fatal(err)
			}
			wants(t, append(m.bridgeConf(), m.policy()...), c.want)
		})
	}
}

// This machine, with bridges in a new netns: each check reports a finding.
func TestLive(t *testing.T) {
	ns := nstest.New(t)
	m := Machine{Self: "/usr/bin", Path: filepath.SplitList(os.Getenv("PATH")), NS: ns}
	wants(t, m.Look(t.Context()), Check{"bridges", Warn, "there is none", "vmnet bridge create"})

	c, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h, err := bridge.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, cfg := range []bridge.Config{{Name: "up0"}, {Name: "stp0", STP: true, MTU: 9000}, {Name: "down0"}} {
		if err := h.Create(cfg); err != nil {
			t.Fatal(err)
		}
	}
	down, err := c.Link("down0")
	if err == nil {
		err = c.Set(down.Index, rtnl.Up(false))
	}
	if err != nil {
		t.Fatal(err)
	}
	all := m.Look(t.Context())
	wants(t, all, Check{"bridge up0", OK, "MTU 1500 bytes, 0 ports, up", ""})
	wants(t, all, Check{
		"bridge stp0", Warn, "MTU 9000 bytes, 0 ports; it runs STP: a new port takes 30 s",
		"vmnet attach --wait",
	})
	wants(t, all, Check{"bridge down0", Warn, "it is down", "ip link set down0 up"})
	found := map[string]bool{}
	for _, check := range all {
		found[check.Name] = true
		if check.Text == "" || check.Status != OK && check.Status != Warn && check.Status != Fail {
			t.Errorf("%+v says nothing", check)
		}
	}
	for _, name := range []string{
		"helper", "bridge.conf", "policy.yaml", "tun", "vhost-net", "port security", "qemu", "br_netfilter",
		"NetworkManager", "systemd-networkd", "udev",
	} {
		if !found[name] {
			t.Errorf("nothing is said of %s", name)
		}
	}
	if Failed([]Check{{Status: Warn}}) || !Failed([]Check{{Status: OK}, {Status: Fail}}) {
		t.Error("Failed")
	}
}

// TestLiveBridgeAddress: a bridge that uses a guest's address is reported until its address is set.
func TestLiveBridgeAddress(t *testing.T) {
	ns := nstest.New(t)
	c, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = errors.Join(c.Create("bridge", rtnl.Name("br0")), c.Create("veth", rtnl.Name("v0")))
	br, brErr := c.Link("br0")
	port, portErr := c.Link("v0")
	if err = errors.Join(err, brErr, portErr); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Set(port.Index, rtnl.Master(br.Index)), c.Set(br.Index, rtnl.Up(true))); err != nil {
		t.Fatal(err)
	}
	m := Machine{NS: ns}
	wants(t, m.bridges(), Check{
		"bridge br0", Warn, "that of its port v0:",
		"ip link set br0 address " + port.MAC.String(),
	})
	if err := c.Set(br.Index, rtnl.MAC(port.MAC)); err != nil {
		t.Fatal(err)
	}
	if got := m.bridges(); len(got) != 1 || got[0].Status != OK {
		t.Errorf("with the address set: %+v", got)
	}
}

// TestLiveRouted: entries that a routed guest has left are a warning, and a host that never had one
// has no check.
func TestLiveRouted(t *testing.T) {
	ns := nstest.New(t)
	m := Machine{NS: ns}
	if got := m.routed(t.Context()); got != nil {
		t.Errorf("on a bare host: %+v", got)
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	lo, err := nl.Link("lo")
	if err != nil {
		t.Fatal(err)
	}
	entry := rtnl.Proxy{Link: lo.Index, Addr: netip.MustParseAddr("192.0.2.11"), Protocol: 118}
	if err := nl.AddProxy(entry); err != nil {
		t.Fatal(err)
	}
	got := m.routed(t.Context())
	if len(got) != 1 || got[0].Status != Warn || !strings.Contains(got[0].Text, "proxy entry of 192.0.2.11 (lo)") ||
		!strings.Contains(got[0].Cure, "vmnet reconcile") {
		t.Errorf("%+v", got)
	}
	if err := nl.DeleteProxy(entry); err != nil {
		t.Fatal(err)
	}

	tap, err := tun.Create(ns, "P2-net0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	alias, aliasErr := nic.Record{
		VM: "P2", NIC: "net0", Type: nic.TypeRouted, Source: "lo", MAC: nic.DefaultMAC("P2", "net0"),
		IP: []netip.Addr{entry.Addr}, Model: nic.DefaultModel, Queues: 1,
	}.Encode()
	l, err := nl.Link("P2-net0")
	if err == nil {
		err = nl.Set(l.Index, rtnl.Alias(alias))
	}
	if err = errors.Join(err, aliasErr); err != nil {
		t.Fatal(err)
	}
	wants(t, m.routed(t.Context()), Check{"routed NICs", OK, "1, nothing is left of former ones, and no other ", ""})
	err = nft.Apply(t.Context(), ns, "table ip x { chain F { type filter hook forward priority 0; policy drop; }\n}")
	if err != nil {
		t.Fatal(err)
	}
	wants(t, m.routed(t.Context()), Check{
		"routed NICs", Fail, "P2/net0 P2-net0: ip x F of the table x drops ", "nft insert rule ip x F iifname P2-net0 ",
	})
}
