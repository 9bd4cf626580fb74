package guestfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/pflag"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/leaktest"
	"vmnet/internal/strictyaml"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const everything = `vm: "a/b ü"
user: alice
nics:
  net0: {bridge: br0, vlan: 10, isolated: true, mac: "52:54:00:00:00:01"}
  net1:
    network: lab
    ip: [10.66.0.20, "fd66::20"]
    queues: auto
    persistent: true
    state: down
  net2: {state: absent}
  net3: {switch: sw0, trunk: [2-5, 7], native: 7, forward: [lldp, lacp], storm: "off", via: [monitor, socket]}
  net4: {ipvtap: wlan0, ip: 192.0.2.7/24, mode: l3}
  net5: {macvtap: eth0, mode: source, source-mac: ["52:54:00:00:00:02"], device-opt: [a=b, c=d], model: e1000}
  net6: {bridge: "10", vhost: "off", state: up}
  net7: {bridge: br0, port-security: all, ip: [192.0.2.7, "2001:db8::/64"], allow-ethertype: ["0x88f7"],
    allow-in: ["tcp:22,from=10.0.0.0/8", icmp]}
`

func parsed(t *testing.T, text string) *Guest {
	t.Helper()
	g, err := Parse("f", "P2", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestParse(t *testing.T) {
	g := parsed(t, everything)
	var got []string
	for _, n := range g.NICs {
		text := fmt.Sprint(n.Spec.NIC, " ", n.State, " ", n.Spec.Persistent)
		for _, w := range nicflags.Words(n.Spec) {
			text += fmt.Sprintf(" %s=%s", w.Flag, strings.Join(w.Values, " "))
		}
		got = append(got, text)
	}
	want := []string{
		"net0 up false bridge=br0 mac=52:54:00:00:00:01 vlan=10 isolated=true",
		"net1 down true network=lab ip=10.66.0.20 fd66::20 queues=auto link=down",
		"net2 absent false",
		"net3 up false switch=sw0 trunk=2-5,7 native=7 forward=lacp,lldp storm=off via=monitor,socket",
		"net4 up false ipvtap=wlan0 mode=l3 ip=192.0.2.7/24 rx-filter=",
		"net5 up false macvtap=eth0 mode=source source-mac=52:54:00:00:00:02 model=e1000 device-opt=a=b c=d",
		"net6 up false bridge=10 vhost=off",
		"net7 up false bridge=br0 ip=192.0.2.7 2001:db8::/64 port-security=all allow-ethertype=0x88f7 allow-in=tcp:22,from=10.0.0.0/8 icmp",
	}
	want[4] = strings.TrimSuffix(want[4], " rx-filter=")
	if g.VM != "a/b ü" || g.User != "alice" || !slices.Equal(got, want) {
		t.Errorf("%q %q\n%s\nwant\n%s", g.VM, g.User, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if again := parsed(t, string(g.Format())); !reflect.DeepEqual(again, g) {
		t.Errorf("%+v\nwant %+v\nof %s", again, g, g.Format())
	}
	empty := parsed(t, "nics: {}")
	if again := parsed(t, string(empty.Format())); empty.VM != "P2" || !reflect.DeepEqual(again, empty) {
		t.Errorf("%+v, want %+v", again, empty)
	}
}

// TestEachFlagIsAKey: a flag of a NIC is a key of the file, without a word of it here.
func TestEachFlagIsAKey(t *testing.T) {
	fs, _ := nicflags.All()
	fs.VisitAll(func(f *pflag.Flag) {
		_, err := Parse("f", "P2", []byte("nics: {net0: {"+f.Name+": {}}}"))
		known := err != nil && !strings.Contains(err.Error(), "has no key")
		if known == (f.Name == "nic") {
			t.Errorf("%s: %v", f.Name, err)
		}
	})
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"# nothing":                                       "f:1:1: the file is empty",
		"vm: P2":                                          "f:1:1: nics is missing",
		"nics:":                                           "nics is not a mapping",
		"nics: [net0]":                                    "f:1:7: nics is not a mapping",
		"vm: \"\"\nnics: {}":                              "no guest is named (--vm) (write vm: NAME)",
		"vm: \"a\\nb\"\nnics: {}":                         "want printable UTF-8 text",
		"user: \"\"\nnics: {}":                            "f:1:7: user: \"\" is not the name of a user",
		"nics: {}\nnic: {}":                               "f:2:1: the file has no key \"nic\" (want vm, user, nics)",
		"nics: {}\n---\nnics: {}":                         "a second document",
		"nics:\n  Net0: {bridge: br0}":                    "f:2:3: NIC id \"Net0\"",
		"nics:\n  net0: {}":                               "f:2:3: net0: neither bridge nor network",
		"nics:\n  net0:":                                  "net0 is not a mapping",
		"nics:\n  net0: {bridge: br0, vm: x}":             "f:2:23: net0 has no key \"vm\"",
		"nics:\n  net0: {bridge: br0, nic: x}":            "f:2:23: net0 has no key \"nic\"",
		"nics:\n  net0: {bridge: br0, vlan: 0}":           "f:2:29: vlan: VLAN 0 only marks a priority",
		"nics:\n  net0: {bridge: br0, vlan: [1, 2]}":      "vlan: want a whole number",
		"nics:\n  net0: {bridge: br0, vlan: {}}":          "f:2:29: vlan is not a plain value",
		"nics:\n  net0: {bridge: br0, trunk: [2, []]}":    "trunk is not a plain value",
		"nics:\n  net0: {bridge: \"\"}":                   "f:2:18: bridge is empty",
		"nics:\n  net0: {bridge: br0, bridge: br1}":       "mapping key \"bridge\" already defined",
		"nics:\n  net0: {bridge: br0}\n  net0: {}":        "mapping key \"net0\" already defined",
		"nics:\n  net0: {bridge: br0, switch: sw0}":       "f:2:3: net0: --bridge and --switch: a NIC can have only one of them",
		"nics:\n  net0: {bridge: br0, isolated: yes}":     "isolated is neither true nor false",
		"nics:\n  net0: {bridge: br0, state: off}":        "state is \"off\": want up, down or absent",
		"nics:\n  net0: {state: absent, vlan: 10}":        "net0: neither bridge",
		"nics:\n  net0: &a {bridge: br0}\n  net1: *a":     "f:2:",
		"nics:\n  net0: {network: lab, ip: [x]}":          "f:2:29: ip: want an IP address",
		"nics:\n  net0: {bridge: br0, device-opt: a}":     "device-opt: want KEY=VALUE",
		"nics:\n  net0: {bridge: br0, persistent: maybe}": "persistent is neither true nor false",
		"nics:\n  net0: {bridge: br0, mac: \"52:54:00:00:00:01\"}\n  net1: {bridge: br0, mac: \"52:54:00:00:00:01\"}": "f:3:3: net1: net0 has the mac 52:54:00:00:00:01 as well",
	} {
		if g, err := Parse("f", "P2", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v\nwant %s", text, g, err, want)
		}
	}
	long := "nics: {}\n#" + strings.Repeat("x", strictyaml.MaxBytes)
	if _, err := Parse("f", "P2", []byte(long)); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a long file: %v", err)
	}
	if _, err := Parse("f", "a\x01", []byte("nics: {}")); err == nil {
		t.Error("a file whose name has a control character is taken for a guest's")
	}
}

// FuzzParse: what is read is written so that it is read alike, and what is not is an error.
func FuzzParse(f *testing.F) {
	f.Add(everything)
	f.Add("nics: {net0: {bridge: br0, trunk: [2-5, 7]}}")
	f.Add("nics: {net0: {bridge: \"\\x00\"}}")
	f.Fuzz(func(t *testing.T, text string) {
		g, err := Parse("f", "P2", []byte(text))
		if err != nil {
			return
		}
		again, err := Parse("f", "other", g.Format())
		if err != nil {
			t.Fatalf("%v\nof %s\nof %q", err, g.Format(), text)
		}
		if !bytes.Equal(again.Format(), g.Format()) {
			t.Errorf("%s\nwant %s\nof %q", again.Format(), g.Format(), text)
		}
	})
}

func record(t *testing.T, text string) nic.Record {
	t.Helper()
	r, ok := nic.ParseRecord("vmnet vm=P2 " + text)
	if !ok {
		t.Fatal(text)
	}
	return r
}

// tapRecord is net0 as attached to br0 without further flags.
func tapRecord(more string) string {
	return "nic=net0 type=tap source=br0 mac=" + nic.DefaultMAC("P2", "net0").String() +
		" model=virtio-net-pci queues=1" + more
}

func TestCompare(t *testing.T) {
	mac := " mac=" + nic.DefaultMAC("P2", "net0").String() + " model=virtio-net-pci queues=1"
	const checked = "{net0: {ipvtap: eth0, ip: 192.0.2.7, port-security: all}}"
	address := parsed(t, "nics: "+checked).NICs[0].Spec.OptionsHash()
	options := nic.Spec{DeviceOptions: map[string]string{"a": "b"}}.OptionsHash()
	for _, tc := range []struct{ name, nics, record, state, want string }{
		{"same", "{net0: {bridge: br0}}", tapRecord(""), "", "keep net0"},
		{"other name", "{net0: {bridge: lan}}", tapRecord(""), "", "keep net0"},
		{
			"open", "{net0: {bridge: br0, queues: auto, vhost: auto}}",
			"nic=net0 type=tap source=br0 mac=" + nic.DefaultMAC("P2", "net0").String() +
				" model=e1000 queues=4 vhost=on mtu=1400", "", "keep net0",
		},
		{"move", "{net0: {bridge: br1}}", tapRecord(""), "", "set net0 bridge br0 -> br1"},
		{"new key", "{net0: {bridge: br0, vlan: 10}}", tapRecord(""), "", "set net0 vlan -> 10"},
		{
			"lost key", "{net0: {bridge: br0}}", tapRecord(" port=vlan:10;isolated"), "",
			"set net0 vlan 10 ->, isolated true ->",
		},
		{"trunk", "{net0: {bridge: br0, trunk: [7, 2-5, 3]}}", tapRecord(" port=trunk:2-5,7"), "", "keep net0"},
		{"down", "{net0: {bridge: br0, state: down}}", tapRecord(""), "", "set net0 link -> down"},
		{
			"to store", "{net0: {bridge: br0, persistent: true}}", tapRecord(" via=libvirt"), "",
			"set net0 persistent -> true",
		},
		{"to forget", "{net0: {bridge: br0}}", tapRecord(" via=libvirt"), "stored", "set net0 persistent true ->"},
		{"stored", "{net0: {bridge: br0, persistent: true}}", tapRecord(" via=libvirt"), "stored", "keep net0"},
		{
			"mac", "{net0: {bridge: br0}}", "nic=net0 type=tap source=br0 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1", "",
			"set net0 mac 52:54:00:00:00:01 -> " + nic.DefaultMAC("P2", "net0").String(),
		},
		{"absent", "{net0: {bridge: br0, state: absent}}", tapRecord(""), "", "detach net0"},
		{"surplus", "{}", tapRecord(""), "", "detach net0"},
		{"surplus, prepared", "{}", tapRecord(" prepared=yes"), "prepared", ""},
		{"prepared", "{net0: {bridge: br1}}", tapRecord(" prepared=yes"), "no-bridge", "keep net0"},
		{"missing", "{net0: {bridge: br0}}", "", "", "attach net0 bridge -> br0"},
		{"absent already", "{net0: {state: absent}}", "", "", ""},
		{"order", "{net1: {bridge: br0}}", tapRecord(""), "", "detach net0; attach net1 bridge -> br0"},
		{"incomplete", "{net0: {bridge: br0}}", tapRecord(""), "incomplete", "attach net0"},
		{"interrupted set", "{net0: {bridge: br0}}", tapRecord(""), "changing", "set net0"},
		{"moved by hand", "{net0: {bridge: br0}}", tapRecord(""), "other-bridge", "set net0"},
		{"being detached", "{net0: {bridge: br0}}", tapRecord(""), "detaching", "attach net0"},
		{
			"ip", "{net0: {network: lab, ip: [10.66.0.21, 10.66.0.20]}}",
			"nic=net0 type=tap source=lab network=lab ip=10.66.0.20,10.66.0.21" + mac, "", "keep net0",
		},
		{"options", "{net0: {bridge: br0, device-opt: a=b}}", tapRecord(" opts=" + options), "", "keep net0"},
		{
			"other options", "{net0: {bridge: br0, device-opt: a=c}}", tapRecord(" opts=" + options), "",
			"set net0 device-opt -> a=c",
		},
		{"no options", "{net0: {bridge: br0}}", tapRecord(" opts=" + options), "", "set net0 device-opt others ->"},
		{
			"switch", "{net0: {switch: sw0, storm: 1000}}", "nic=net0 type=socket source=sw0 switch=on" + mac, "",
			"keep net0",
		},
		{
			"switch's limits", "{net0: {switch: sw0}}", "nic=net0 type=socket source=sw0 switch=on lock=on" + mac, "",
			"set net0 lock-mac true ->",
		},
		{
			"macvtap", "{net0: {macvtap: eth0}}", "nic=net0 type=macvtap source=eth0 mode=bridge rx=allmulti" + mac, "",
			"keep net0",
		},
		{"ipvtap", "{net0: {ipvtap: eth0, ip: 192.0.2.7}}", "nic=net0 type=ipvtap source=eth0 mode=l2 rx=allmulti " +
			"mac=52:54:00:00:00:09 model=virtio-net-pci queues=1", "", "set net0 ip -> 192.0.2.7"},
		{
			"ipvtap's checks", checked,
			"nic=net0 type=ipvtap source=eth0 mode=l2 rx=allmulti ip=192.0.2.7 security=all opts=" + address +
				" mac=52:54:00:00:00:09 model=virtio-net-pci queues=1", "", "keep net0",
		},
		{
			"checks", "{net0: {bridge: br0, port-security: [mac, vlan, ip], ip: [192.0.2.8, 192.0.2.7, 192.0.2.0/28], " +
				"allow-ethertype: [\"0x88f8\", \"0x88f7\"]}}",
			tapRecord(" ip=192.0.2.7,192.0.2.8 security=mac,ip,vlan types=0x88f7,0x88f8 nets=192.0.2.0/28"), "",
			"keep net0",
		},
	} {
		var there []There
		if tc.record != "" {
			there = []There{{Record: record(t, tc.record), State: nic.State(tc.state), Names: []string{"lan"}}}
		}
		if tc.state == "stored" {
			there[0].State, there[0].Stored = "", true
		}
		if tc.name == "moved by hand" {
			there[0].Off = "its bridge is br1, not br0"
		}
		var got []string
		for _, c := range parsed(t, "nics: "+tc.nics).Compare(there) {
			var texts []string
			for _, d := range c.Differences {
				texts = append(texts, strings.Join(strings.Fields(d.Flag+" "+d.From+" -> "+d.To), " "))
			}
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Action, c.NIC, strings.Join(texts, ", "))))
		}
		if text := strings.Join(got, "; "); text != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, text, tc.want)
		}
	}
}

// TestAdd: the file that describes a guest as it is changes nothing of it.
func TestAdd(t *testing.T) {
	for _, text := range []string{
		tapRecord(""), tapRecord(" port=vlan:10;isolated vhost=on mtu=1400"),
		"nic=net0 type=tap source=br0 mac=52:54:00:00:00:01 model=e1000 queues=1 link=down",
		"nic=net0 type=tap source=lab network=lab ip=10.66.0.20 mac=52:54:00:00:00:01 model=virtio-net-pci queues=4",
		tapRecord(" ip=192.0.2.7,192.0.2.8 security=mac,ip,vlan types=0x88f7,0x88f8 nets=192.0.2.0/28"),
		"nic=net0 type=routed source=eth0 ip=192.0.2.7 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1",
		"nic=net0 type=socket source=sw0 switch=on lock=on storm=-1 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1 via=monitor",
		"nic=net0 type=tap source=/run/x/sw0 switch=on mac=52:54:00:00:00:01 model=virtio-net-pci queues=2",
		"nic=net0 type=macvtap source=eth0 mode=passthru rx=none mac=52:54:00:00:00:01 model=virtio-net-pci queues=1 via=libvirt",
	} {
		r := record(t, text)
		is := &Guest{VM: "P2"}
		is.Add(r, false)
		g := parsed(t, string(is.Format()))
		if all := g.Compare([]There{{Record: r}}); len(all) != 1 || all[0].Action != Keep {
			t.Errorf("%s: %+v\nof %s", text, all, g.Format())
		}
	}
}

func TestMAC(t *testing.T) {
	g := parsed(t, "nics: {net0: {bridge: br0}, net1: {bridge: br0, mac: \"52:54:00:00:00:01\"}, "+
		"net2: {ipvtap: eth0, ip: 192.0.2.7}}")
	for id, want := range map[string]string{
		"net0": nic.DefaultMAC("P2", "net0").String(), "net1": "52:54:00:00:00:01", "net2": "",
		"net9": nic.DefaultMAC("P2", "net9").String(),
	} {
		if got := g.MAC(id).String(); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
}

func TestUID(t *testing.T) {
	for user, want := range map[string]string{
		"": "0 false <nil>", "0": "0 true <nil>", "root": "0 true <nil>", "1000": "1000 true <nil>",
	} {
		uid, ok, err := (&Guest{User: user}).UID()
		if got := fmt.Sprint(uid, ok, err); got != want {
			t.Errorf("%q: %s, want %s", user, got, want)
		}
	}
	for _, user := range []string{"010", "0x10", "-1", "4294967296", "no such user"} {
		if uid, ok, err := (&Guest{User: user}).UID(); err == nil {
			t.Errorf("%q: %d, %v", user, uid, ok)
		}
	}
}

func TestDir(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("P1.yaml", "nics: {}", 0o644)
	write("slash.yaml", "vm: a/b\nnics: {}", 0o600)
	write("twice.yaml", "vm: P3\nnics: {}", 0o644)
	write("P3.yaml", "nics: {}", 0o644)
	write("open.yaml", "nics: {}", 0o666)
	write("wrong.yaml", "nics: {", 0o644)
	write(".hidden.yaml", "nics: {", 0o644)
	write("note.txt", "nics: {", 0o644)
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("P1.yaml.gone", filepath.Join(dir, "dangling.yaml")); err != nil {
		t.Fatal(err)
	}
	guests, broken, err := Dir(dir).All()
	var vms, files []string
	for _, g := range guests {
		vms = append(vms, g.VM)
	}
	for name := range broken {
		files = append(files, name)
	}
	slices.Sort(files)
	if got := fmt.Sprint(vms, files, err); got != "[P1 a/b] [P3 fifo open twice wrong] <nil>" {
		t.Errorf("%s\n%v", got, broken)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Dir(dir).All(); err == nil || !strings.Contains(err.Error(), "(chmod 0755 ") {
		t.Errorf("a directory that all may write: %v", err)
	}
	if guests, _, err := Dir(dir + "/none").All(); len(guests) > 0 || err != nil {
		t.Errorf("no directory: %v, %v", guests, err)
	}
	if g, err := ReadFile(filepath.Join(dir, "open.yaml")); err != nil || g.VM != "open" {
		t.Errorf("a file that the caller has chosen: %+v, %v", g, err)
	}
	if _, err := ReadFile(filepath.Join(dir, "fifo.yaml")); err == nil {
		t.Error("a FIFO was read")
	}
}
