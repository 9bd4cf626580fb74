package managers

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// host is a root directory with files; a name that ends in / is a directory.
func host(t *testing.T, files map[string]string) (h Host, ran *[]string) {
	t.Helper()
	ran = &[]string{}
	h = Host{Root: t.TempDir(), Run: func(_ context.Context, argv ...string) error {
		*ran = append(*ran, strings.Join(argv, " "))
		return errors.New("it does not answer")
	}}
	for name, text := range files {
		path := filepath.Join(h.Root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		err := os.MkdirAll(dir, 0o755)
		if err == nil && dir != path {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return h, ran
}

func TestKeepOff(t *testing.T) {
	h, ran := host(t, map[string]string{
		"etc/NetworkManager/": "", "etc/systemd/network/": "", "run/NetworkManager/": "",
	})
	files := h.KeepOff("lab", []string{"lab", "lab-srv", "eth*"})
	if len(files) != 2 {
		t.Fatalf("%+v", files)
	}
	nm := "# Written by vmnet for network lab, and removed by vmnet network delete lab.\n" +
		"[keyfile]\nunmanaged-devices+=interface-name:lab;interface-name:lab-srv\n"
	if files[0].Path != h.Root+"/etc/NetworkManager/conf.d/vmnet-lab.conf" || files[0].Content != nm {
		t.Errorf("%+v", files[0])
	}
	if files[1].Path != h.Root+"/etc/systemd/network/05-vmnet-lab.network" ||
		!strings.HasSuffix(files[1].Content, "\n[Match]\nName=lab lab-srv\n\n[Link]\nUnmanaged=yes\n") {
		t.Errorf("%+v", files[1])
	}
	if missing, err := h.Missing("lab", files); len(missing) != 2 || err != nil {
		t.Errorf("%+v, %v", missing, err)
	}
	if err := h.Write(t.Context(), files); err != nil {
		t.Fatal(err)
	}
	if missing, err := h.Missing("lab", files); len(missing) != 0 || err != nil || len(h.Left("lab")) != 2 {
		t.Errorf("%+v, %v, left %+v", missing, err, h.Left("lab"))
	}
	if err := h.Remove(t.Context(), h.Left("lab")); err != nil || len(h.Left("lab")) != 0 {
		t.Errorf("%v, left %+v", err, h.Left("lab"))
	}
	if got := strings.Join(*ran, ", "); got != "nmcli general reload conf, nmcli general reload conf" {
		t.Errorf("ran %s", got)
	}
	if err := os.WriteFile(files[0].Path, []byte("[keyfile]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if missing, err := h.Missing("lab", files); len(missing) != 1 || err != nil || len(h.Left("lab")) != 0 {
		t.Errorf("somebody else's file: %+v, %v, left %+v", missing, err, h.Left("lab"))
	}
	bare, _ := host(t, nil)
	if files := bare.KeepOff("lab", []string{"lab"}); len(files) > 0 {
		t.Errorf("without managers: %+v", files)
	}
}

func TestNextBoot(t *testing.T) {
	const static = "[Match]\nName=eth1\n\n[Link]\nMACAddress=02:00:00:00:00:01\nMTUBytes=9000\n\n" +
		"[Network]\nAddress=192.0.2.2/24\n\n[Route]\nGateway=192.0.2.1\n"
	const link = "# This is private data.\nADMIN_STATE=configured\nNETWORK_FILE="
	const profile = "[connection]\nid=wired\nuuid=7-7\ntype=ethernet\nzone=home\n\n[ethernet]\nmtu=1400\n\n[ipv4]\nmethod=manual\n" +
		"address1=192.0.2.2/24,192.0.2.1\n\n[ipv6]\nmethod=auto\n"
	for name, c := range map[string]struct {
		files   map[string]string
		manager string
		want    []string // in the files, or the text without files
		count   int
	}{
		"networkd": {
			map[string]string{
				"run/systemd/netif/links/7":     link + "/etc/systemd/network/x.network\n",
				"etc/systemd/network/x.network": static,
			},
			"systemd-networkd",
			[]string{
				"[Match]\nName=eth1\n\n[Link]\nUnmanaged=yes", "[Match]\nName=lan\n\n[Link]\nMTUBytes=9000\n\n" +
					"[Network]\nAddress=192.0.2.2/24\n\n[Route]\nGateway=192.0.2.1\n",
			},
			2,
		},
		"netplan": {
			map[string]string{
				"run/systemd/netif/links/7":                   link + "/run/systemd/network/10-netplan-eth1.network\n",
				"run/systemd/network/10-netplan-eth1.network": static,
			},
			"netplan with systemd-networkd",
			[]string{"# A copy of /run/systemd/network/10-netplan-eth1.network", "has no effect from then on"},
			2,
		},
		"networkd with VLANs": {
			map[string]string{
				"run/systemd/netif/links/7":     link + "/etc/systemd/network/x.network\n",
				"etc/systemd/network/x.network": static + "[Network]\nVLAN=eth1.5\n",
			},
			"systemd-networkd",
			[]string{"x.network configures eth1, and it has VLAN=: write /etc/systemd/network/05-vmnet-lan-bridge."},
			0,
		},
		"networkd with drop-ins": {
			map[string]string{
				"run/systemd/netif/links/7":     link + "/etc/systemd/network/x.network\n",
				"etc/systemd/network/x.network": static, "etc/systemd/network/x.network.d/a.conf": "",
			},
			"systemd-networkd",
			[]string{"it has drop-in files"},
			0,
		},
		"NetworkManager": {
			map[string]string{
				"run/NetworkManager/devices/7":                           "[device]\nmanaged=true\nconnection-uuid=7-7\n",
				"etc/NetworkManager/system-connections/a.nmconnection":   "[connection]\nuuid=8-8\n",
				"etc/NetworkManager/system-connections/eth.nmconnection": profile,
			},
			"NetworkManager",
			[]string{
				"[connection]\nid=vmnet-lan\ntype=bridge\ninterface-name=lan\nzone=home\n",
				"[bridge]\nstp=false\nmac-address=52:54:00:00:00:07\n\n[ipv4]\n",
				"[connection]\nid=vmnet-lan-uplink\ntype=ethernet\ninterface-name=eth1\nmaster=lan\nslave-type=bridge\n" +
					"autoconnect-priority=999\n\n[ethernet]\nmtu=1400\n",
				"nmcli connection up vmnet-lan; nmcli connection up vmnet-lan-uplink. Do so if eth1 has its address by DHCP",
				"[ipv4]\nmethod=manual\naddress1=192.0.2.2/24,192.0.2.1\n\n[ipv6]\nmethod=auto\n",
			},
			2,
		},
		"NetworkManager with a bond": {
			map[string]string{
				"run/NetworkManager/devices/7":                           "[device]\nmanaged=true\nconnection-uuid=7-7\n",
				"etc/NetworkManager/system-connections/eth.nmconnection": strings.Replace(profile, "=ethernet", "=bond", 1),
			},
			"NetworkManager",
			[]string{"another profile of that with master lan and a higher autoconnect-priority"},
			0,
		},
		"NetworkManager without a file": {
			map[string]string{"run/NetworkManager/devices/7": "[device]\nmanaged=true\nconnection-uuid=7-7\n"},
			"NetworkManager",
			[]string{"nmcli connection add type bridge ifname lan"},
			0,
		},
		"ifupdown": {
			map[string]string{
				"etc/network/interfaces": "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n",
				"etc/network/interfaces.d/eth1": "auto eth1\niface eth1 inet static\n\taddress 192.0.2.2/24\n" +
					"\tgateway 192.0.2.1\n\niface eth1 inet6 auto\nauto eth2\niface eth2 inet dhcp\n",
			},
			"ifupdown",
			[]string{
				"/etc/network/interfaces.d/eth1, write", "allow-hotplug lan\niface lan inet static\n    address 192.0.2.2/24\n" +
					"    gateway 192.0.2.1\niface lan inet6 auto\n",
			},
			0,
		},
		"nothing": {nil, "", []string{"what does so should configure lan"}, 0},
	} {
		h, _ := host(t, c.files)
		b := h.NextBoot("lan", Interface{"eth1", 7, "52:54:00:00:00:07"})
		text := strings.Join(b.Text, "\n") + "\n"
		for _, f := range b.Files {
			text += f.Content
		}
		if b.Manager != c.manager || len(b.Files) != c.count {
			t.Errorf("%s: %s, %d files", name, b.Manager, len(b.Files))
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", name, want, text)
			}
		}
		if strings.Contains(text, "MACAddress") || strings.Contains(text, "eth2") {
			t.Errorf("%s: too much:\n%s", name, text)
		}
	}
	h, _ := host(t, nil)
	odd := Interface{Name: "eth*", Index: 7}
	if b := h.NextBoot("lan", odd); len(b.Files) > 0 || !strings.Contains(b.Text[0], "pattern") {
		t.Errorf("%+v", b)
	}
}
