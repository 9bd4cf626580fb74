package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// made returns a machine with these files, by path and text. A path that ends with a star is a
// program.
func made(t *testing.T, files map[string]string) Machine {
	t.Helper()
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range files {
		path, program := strings.CutSuffix(path, "*")
		mode := os.FileMode(0o644)
		if program {
			mode = 0o755
		}
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	return Machine{Root: root, Self: "/usr/bin", Path: []string{"/usr/local/bin", "/usr/bin"}}
}

// wants compares one finding. Text and cure of want need only be contained in those found.
func wants(t *testing.T, got []Check, want Check) {
	t.Helper()
	for _, c := range got {
		if c.Name == want.Name && c.Status == want.Status && strings.Contains(c.Text, want.Text) &&
			strings.Contains(c.Cure, want.Cure) {
			return
		}
	}
	t.Errorf("no %+v among\n%s", want, strings.ReplaceAll(fmt.Sprintf("%+v", got), "} {", "}\n{"))
}

const (
	nm       = "/proc/12/comm"
	networkd = "/proc/13/comm"
	nmConf   = "/etc/NetworkManager/conf.d/a.conf"
)

func TestOthers(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		look  func(Machine) []Check
		want  Check
	}{
		{"no br_netfilter", nil, Machine.netfilter, Check{"br_netfilter", OK, "do not go", ""}},
		{
			"br_netfilter off",
			map[string]string{"/proc/sys/net/bridge/bridge-nf-call-iptables": "0\n"},
			Machine.netfilter,
			Check{"br_netfilter", OK, "do not go", ""},
		},
		{
			"br_netfilter on",
			map[string]string{
				"/proc/sys/net/bridge/bridge-nf-call-iptables":  "1\n",
				"/proc/sys/net/bridge/bridge-nf-call-ip6tables": "1\n",
			},
			Machine.netfilter,
			Check{
				"br_netfilter", Warn, "iptables, ip6tables, whose FORWARD",
				"sysctl -w net.bridge.bridge-nf-call-iptables=0",
			},
		},

		{"no machine id", nil, Machine.machineID, Check{
			"machine id", Warn, "no /etc/machine-id",
			"systemd-machine-id-setup",
		}},
		{
			"machine id of an image",
			map[string]string{"/etc/machine-id": "uninitialized\n"},
			Machine.machineID,
			Check{"machine id", Warn, `"uninitialized"`, "--mac"},
		},
		{
			"machine id",
			map[string]string{"/etc/machine-id": "b08dfa6083e7567a1921a715000001fb\n"},
			Machine.machineID,
			Check{"machine id", OK, "survive a boot", ""},
		},

		{
			"no watch",
			map[string]string{"/proc/12/cmdline": "vmnet\x00list\x00"},
			Machine.watch,
			Check{"watch", Warn, "another guest's address", "vmnet-watch"},
		},
		{
			"watch",
			map[string]string{"/proc/12/cmdline": "/usr/bin/vmnet\x00watch\x00"},
			Machine.watch,
			Check{"watch", OK, "resets the addresses", ""},
		},

		{
			"no NetworkManager",
			map[string]string{nm: "init\n"},
			Machine.networkManager,
			Check{"NetworkManager", OK, "does not run", ""},
		},
		{
			"NetworkManager",
			map[string]string{nm: "NetworkManager\n"},
			Machine.networkManager,
			Check{"NetworkManager", Warn, "is not configured", "unmanaged-devices+=type:tun"},
		},
		{
			"NetworkManager, told",
			map[string]string{
				nm:     "NetworkManager\n",
				nmConf: "[main]\nx=y\n[keyfile]\nunmanaged-devices+=interface-name:eth9;type:tun\n",
			},
			Machine.networkManager,
			Check{"NetworkManager", OK, nmConf, ""},
		},
		{
			"NetworkManager, told something else",
			map[string]string{
				nm:     "NetworkManager\n",
				nmConf: "[keyfile]\n#unmanaged-devices=type:tun\nunmanaged-devices=interface-name:eth9\n",
			},
			Machine.networkManager,
			Check{"NetworkManager", Warn, "is not configured", ""},
		},

		{"no networkd", nil, Machine.networkd, Check{"systemd-networkd", OK, "does not run", ""}},
		{
			"networkd for Ethernet cards",
			map[string]string{
				networkd: "systemd-network\n", "/etc/systemd/network/20-a.network": "[Match]\nName=en* eth*\n",
				"/usr/lib/systemd/network/80-b.network": "[Match]\nType=ether\nKind=!*\n",
				"/usr/lib/systemd/network/80-c.network": "[Match]\nKind=veth\nName=*\n",
			},
			Machine.networkd,
			Check{"systemd-networkd", OK, "none of its files", ""},
		},
		{
			"networkd for all",
			map[string]string{
				networkd:                            "systemd-network\n",
				"/etc/systemd/network/20-a.network": "[Match]\nVirtualization=no\nName=*\n[Network]\nDHCP=yes\n",
			},
			Machine.networkd,
			Check{"systemd-networkd", Warn, "/etc/systemd/network/20-a.network", "05-vmnet.network"},
		},
		{
			"networkd for all but taps",
			map[string]string{
				networkd: "systemd-network\n", "/etc/systemd/network/20-a.network": "[Match]\nType=ether\n",
				"/etc/systemd/network/05-vmnet.network": "[Match]\nDriver=tun\n\n[Link]\nUnmanaged=yes\n",
			},
			Machine.networkd,
			Check{"systemd-networkd", OK, "05-vmnet.network", ""},
		},
		{
			"networkd, a file in /etc instead of its namesake",
			map[string]string{
				networkd:                                "systemd-network\n",
				"/usr/lib/systemd/network/20-a.network": "[Match]\nName=*\n", "/etc/systemd/network/20-a.network": "",
			},
			Machine.networkd,
			Check{"systemd-networkd", OK, "none of its files", ""},
		},

		{"no udev", nil, Machine.udev, Check{"udev", OK, "as they are", ""}},
		{
			"udev",
			map[string]string{
				"/lib/systemd/network/99-default.link": "[Match]\nOriginalName=*\n[Link]\nMACAddressPolicy=persistent\n",
			},
			Machine.udev,
			Check{"udev", OK, "/lib/systemd/network/99-default.link gives", ""},
		},

		{"no tun", nil, Machine.tun, Check{"tun", Fail, "is not there", "modprobe tun"}},
		{
			"a file for tun",
			map[string]string{"/dev/net/tun": ""},
			Machine.tun,
			Check{"tun", Fail, "not the tun device", "mknod"},
		},
		{"no vhost-net", nil, Machine.vhost, Check{"vhost-net", Warn, "is not there", "modprobe vhost_net"}},
		{"vhost-net", map[string]string{"/dev/vhost-net": ""}, Machine.vhost, Check{"vhost-net", OK, "is there", ""}},
		{"no netns", nil, Machine.bridges, Check{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.look(made(t, c.files))
			if c.want.Name == "" {
				got = append(got, Check{})
			}
			wants(t, got, c.want)
		})
	}
}

func TestQEMU(t *testing.T) {
	says := func(version string) string { return "#!/bin/sh\necho 'QEMU emulator version " + version + "'\n" }
	program := "/usr/bin/qemu-system-" + arch() + "*"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  Check
	}{
		{"none", nil, Check{"qemu", Warn, "there is no qemu-system-", "install it"}},
		{"new", map[string]string{program: says("10.0.3 (Debian 1)")}, Check{"qemu", OK, "version 10.0", ""}},
		{"oldest", map[string]string{program: says("6.2.0")}, Check{"qemu", OK, "version 6.2", ""}},
		{"old", map[string]string{program: says("5.9.1")}, Check{"qemu", Warn, "not tested", "use QEMU 6.2"}},
		{"silent", map[string]string{program: "#!/bin/sh\n"}, Check{"qemu", Warn, "does not print", ""}},
		{"broken", map[string]string{program: "#!/bin/sh\nexit 3\n"}, Check{"qemu", Fail, "exit status 3", ""}},
		{
			"Red Hat's",
			map[string]string{"/usr/libexec/qemu-kvm*": says("9.1.0")},
			Check{"qemu", OK, "/usr/libexec/qemu-kvm, version 9.1", ""},
		},
		{"no helper", map[string]string{program: says("9.1.0")}, Check{"qemu-bridge-helper", OK, "not installed", ""}},
		{
			"its helper",
			map[string]string{program: says("9.1.0"), "/usr/lib/qemu/qemu-bridge-helper*": ""},
			Check{"qemu-bridge-helper", OK, "/usr/lib/qemu/qemu-bridge-helper, mode 0755", ""},
		},
		{
			"its helper and ours",
			map[string]string{
				program: says("9.1.0"), "/usr/lib/qemu/qemu-bridge-helper*": "",
				"/usr/libexec/vmnet/qemu-bridge-helper*": "",
			},
			Check{"qemu-bridge-helper", OK, "helper=/usr/libexec/vmnet/qemu-bridge-helper", ""},
		},
	} {
		t.Run(c.name, func(t *testing.T) { wants(t, made(t, c.files).qemu(t.Context()), c.want) })
	}
}

func TestSettings(t *testing.T) {
	got := settings("x=0\n[A]\n # c\n;d=1\nk = v=w \n[B]\n[A]\nk2=\n[C\n")
	want := map[string][]setting{"": {{"x", "0"}}, "A": {{"k", "v=w"}, {"k2", ""}}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("[Match]\nName=*\n")
	f.Add("=\n[]\n[")
	f.Fuzz(func(_ *testing.T, text string) {
		for _, s := range settings(text) {
			matchesTap(s)
		}
	})
}
