package launch_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vmnet/internal/vmm/launch"
	"vmnet/qmp"
)

// nic is one whose queues and vhosts are numbered from fd on.
func nic(name string, fd, queues int, vhost bool) launch.NIC {
	n := launch.NIC{
		Device: qmp.NIC{ID: "vmnet-" + name, MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(fd)}},
		Name:   name, Interface: "vm-" + name, Type: "tap", Source: "br0", MTU: 1500,
	}
	for range queues {
		n.Queues = append(n.Queues, fd)
		fd++
	}
	for i := 0; vhost && i < queues; i++ {
		n.Vhosts = append(n.Vhosts, fd)
		fd++
	}
	return n
}

func TestCommand(t *testing.T) {
	net0, net1 := nic("net0", 3, 1, false), nic("net1", 4, 2, true)
	const (
		netdev0 = " -netdev tap,id=vmnet-net0-netdev,fds=3"
		device0 = " -device virtio-net-pci,id=vmnet-net0,netdev=vmnet-net0-netdev,mac=52:54:00:00:00:03"
		netdev1 = " -netdev tap,id=vmnet-net1-netdev,fds=4:5,vhostfds=6:7"
		device1 = " -device virtio-net-pci,id=vmnet-net1,netdev=vmnet-net1-netdev,mac=52:54:00:00:00:04"
		mq      = ",mq=on,vectors=6"
		port    = " -device pcie-root-port,id=vmnet-port%d,bus=pcie.0,chassis=%d"
	)
	ports := func(id, chassis int) string { return fmt.Sprintf(port, id, chassis) }
	with := func(n launch.NIC, change func(*launch.NIC)) launch.NIC { change(&n); return n }
	one := []launch.NIC{net0}
	for _, tc := range []struct {
		name   string
		config launch.Config
		line   string
		want   string // {} is line
	}{
		{
			"pc",
			launch.Config{VM: "P2", SparePorts: 2, NICs: []launch.NIC{net0, net1}},
			"qemu-system-x86_64 -m 64",
			"{} -name guest=P2" + netdev0 + device0 + netdev1 + device1 + mq,
		},
		{
			"q35",
			launch.Config{SparePorts: 2, NICs: []launch.NIC{net0, net1}},
			"qemu-system-x86_64 -name guest=P2 -M q35",
			"{}" + ports(0, 1) + netdev0 + device0 + ",bus=vmnet-port0" + ports(1, 2) + netdev1 + device1 +
				",bus=vmnet-port1" + mq + ports(2, 3) + ports(3, 4),
		},
		{
			"virt",
			launch.Config{VM: "P2", NICs: one},
			"qemu-system-aarch64 -name P2 -M virt",
			"{}" + ports(0, 1) + netdev0 + device0 + ",bus=vmnet-port0",
		},
		{
			"microvm",
			launch.Config{VM: "P2", SparePorts: 2, NICs: []launch.NIC{net1}},
			"qemu-system-x86_64 -M microvm",
			"{} -name guest=P2" + netdev1 + strings.Replace(device1, "-pci", "-device", 1) + ",mq=on",
		},
		{
			"microvm with PCI",
			launch.Config{VM: "P2", SparePorts: 2, NICs: one},
			"kvm -M microvm,pcie=on",
			"{} -name guest=P2" + ports(0, 1) + netdev0 + device0 + ",bus=vmnet-port0" + ports(1, 2) + ports(2, 3),
		},
		{
			"the line's ports",
			launch.Config{VM: "P2", SparePorts: 1, NICs: one},
			"qemu-system-x86_64 -M q35 -device pcie-root-port,id=vmnet-port0,chassis=2 -device pci-bridge,chassis_nr=1 -device {\"driver\":\"pcie-root-port\",\"id\":\"vmnet-port2\",\"chassis\":4}",
			"{} -name guest=P2" + ports(1, 3) + netdev0 + device0 + ",bus=vmnet-port1" + ports(3, 5),
		},
		{
			"a NIC called port0",
			launch.Config{VM: "P2", NICs: []launch.NIC{nic("port0", 3, 1, false)}},
			"qemu-kvm -M q35",
			"{} -name guest=P2" + ports(1, 1) + strings.ReplaceAll(netdev0+device0, "net0",
				"port0") + ",bus=vmnet-port1",
		},
		{
			"a place of its own",
			launch.Config{VM: "P2", NICs: []launch.NIC{
				with(net0, func(n *launch.NIC) {
					n.Device.Options = map[string]string{"bus": "a,b", "addr": "3", "rombar": "0"}
				}),
				with(net1, func(n *launch.NIC) { n.Device.Addr = "4" }),
			}},
			"qemu-system-x86_64 -M q35",
			"{} -name guest=P2" + netdev0 + device0 + ",bus=a,,b,addr=3,rombar=0" + netdev1 + device1 + ",addr=4" + mq,
		},
		{
			"a model that is not on PCI",
			launch.Config{VM: "P2", NICs: []launch.NIC{with(net0, func(n *launch.NIC) { n.Device.Model = "usb-net" })}},
			"qemu-system-x86_64 -M q35",
			"{} -name guest=P2" + netdev0 + strings.Replace(device0, "virtio-net-pci", "usb-net", 1),
		},
		{
			"place told",
			launch.Config{VM: "P2", Place: "pci", SparePorts: 2, NICs: one},
			"qemu-system-x86_64 -M q35",
			"{} -name guest=P2" + netdev0 + device0,
		},
		{
			"monitor",
			launch.Config{VM: "P,2", Monitor: "/run/a,b", NICs: one},
			"qemu-system-x86_64",
			"{} -name guest=P,,2 -qmp unix:/run/a,,b,server=on,wait=off" + netdev0 + device0,
		},
		{
			"a name without a guest",
			launch.Config{VM: "P2", NICs: one},
			"qemu-system-x86_64 -name process=x",
			"{} -name guest=P2" + netdev0 + device0,
		},
		{
			"where they go",
			launch.Config{NICs: one},
			"qemu-system-x86_64 {vmnet} -name P2",
			"qemu-system-x86_64" + netdev0 + device0 + " -name P2",
		},
		{"another program", launch.Config{VM: "P2", NICs: one}, "vmm --name x", "{}"},
		{
			"behind wrappers",
			launch.Config{VM: "P2", NICs: one},
			"taskset -c 0 nice qemu-system-x86_64 -m 64",
			"{} -name guest=P2" + netdev0 + device0,
		},
		{
			"a vendor's",
			launch.Config{VM: "P2", NICs: one},
			"qemu-vanilla-system-aarch64 -M virt",
			"{} -name guest=P2" + ports(0, 1) + netdev0 + device0 + ",bus=vmnet-port0",
		},
		{
			"s390x",
			launch.Config{VM: "P2", SparePorts: 2, NICs: []launch.NIC{net1}},
			"qemu-system-s390x",
			"{} -name guest=P2" + netdev1 + strings.Replace(device1, "-pci", "-ccw", 1) + ",mq=on",
		},
		{
			"a board with USB",
			launch.Config{VM: "P2", NICs: one},
			"qemu-system-aarch64 -M raspi3b",
			"{} -name guest=P2" + netdev0 + strings.Replace(device0, "virtio-net-pci", "usb-net", 1),
		},
		{
			"a script that hands them on",
			launch.Config{VM: "P2", NICs: one},
			"sh -c script sh {vmnet}",
			"sh -c script sh" + netdev0 + device0,
		},
		{
			"another program that takes them",
			launch.Config{VM: "P2", NICs: one},
			"vmm {vmnet} -name x a{vmnet}",
			"vmm" + netdev0 + device0 + " -name x a{vmnet}",
		},
		{
			"another program with ports",
			launch.Config{VM: "P2", Place: "pcie", SparePorts: 1, NICs: one},
			"vmm {vmnet}",
			"vmm" + ports(0, 1) + netdev0 + device0 + ",bus=vmnet-port0" + ports(1, 2),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			argv := strings.Fields(tc.line)
			got, err := tc.config.Command(argv)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Fields(strings.Replace(tc.want, "{}", tc.line, 1)), got.Argv); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if again := strings.Fields(tc.line); !slices.Equal(argv, again) {
				t.Errorf("the caller's arguments became %q", argv)
			}
		})
	}
}

func TestCommandRefuses(t *testing.T) {
	net0 := nic("net0", 3, 1, false)
	one := []launch.NIC{net0}
	named := launch.Config{VM: "P2", NICs: one}
	const qemu = "qemu-system-x86_64"
	full := []string{qemu, "-M", "q35"}
	for i := range 255 {
		full = append(full, "-device", fmt.Sprintf("pcie-root-port,chassis=%d", i+1))
	}
	for want, tc := range map[string]struct {
		config launch.Config
		argv   []string
	}{
		"there is no program":  {named, nil},
		"at most 4096":         {named, slices.Repeat([]string{qemu}, 4097)},
		"{vmnet} occurs twice": {named, []string{qemu, "{vmnet}", "{vmnet}"}},
		`place "isa"`:          {launch.Config{VM: "P2", Place: "isa", NICs: one}, []string{qemu}},
		"-1 spare ports":       {launch.Config{VM: "P2", SparePorts: -1, NICs: one}, []string{qemu}},
		"107 bytes of a socket": {
			launch.Config{VM: "P2", Monitor: strings.Repeat("m", 108), NICs: one},
			[]string{qemu},
		},
		"holds a '='": {launch.Config{VM: "P2", Monitor: "/run/a=b", NICs: one}, []string{qemu}},
		"0 NICs":      {launch.Config{VM: "P2"}, []string{qemu}},
		"33 NICs":     {launch.Config{VM: "P2", NICs: make([]launch.NIC, 33)}, []string{qemu}},
		`two NICs are called "net0"`: {
			launch.Config{VM: "P2", NICs: []launch.NIC{net0, nic("net0", 4, 1, false)}},
			[]string{qemu},
		},
		"file descriptor 3": {
			launch.Config{VM: "P2", NICs: []launch.NIC{net0, nic("net1", 3, 1, false)}},
			[]string{qemu},
		},
		"file descriptor 0": {
			launch.Config{VM: "P2", NICs: []launch.NIC{{Name: "net0", Queues: []int{0}}}},
			[]string{qemu},
		},
		"NIC net0: n has 0 queues": {launch.Config{
			VM:   "P2",
			NICs: []launch.NIC{{Name: "net0", Device: qmp.NIC{ID: "n"}}},
		}, []string{qemu}},
		"vmnet-net0 is taken":           {named, []string{qemu, "-device", "e1000,id=vmnet-net0"}},
		"vmnet-net0-netdev is taken":    {named, []string{qemu, "-netdev", `{"type":"user","id":"vmnet-net0-netdev"}`}},
		"all 255 chassis":               {named, full},
		"the guest has no name":         {launch.Config{NICs: one}, []string{qemu}},
		"the guest has no name (give":   {launch.Config{NICs: one}, []string{"vmm", "-name", "P2"}},
		`two names, "P2" by --vm and "`: {named, []string{qemu, "-name", "guest=P3"}},
		"holds a NUL":                   {named, []string{qemu, "a\x00b"}},
	} {
		if _, err := tc.config.Command(tc.argv); !errors.Is(err, launch.ErrInvalid) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// TestNumber: open files keep their numbers, and the files of a plan get the next ones.
func TestNumber(t *testing.T) {
	device := qmp.NIC{Queues: 2, Vhost: true, Netns: true, Label: true}
	next := 3
	plain, planned := launch.NIC{Device: qmp.NIC{Queues: 1}}, launch.NIC{Device: device}
	plain.Number(&qmp.Files{}, &next)
	planned.Number(&qmp.Files{}, &next)
	want := []launch.NIC{
		{Device: plain.Device, Queues: []int{3}},
		{Device: device, Queues: []int{4, 5}, Vhosts: []int{6, 7}, Netns: 8, Label: 9},
	}
	if diff := cmp.Diff(want, []launch.NIC{plain, planned}, cmpopts.IgnoreUnexported(qmp.NIC{})); diff != "" ||
		next != 10 {
		t.Errorf("planned, next %d (-want +got):\n%s", next, diff)
	}

	var files []*os.File
	var fds []int
	for range 6 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, fds = append(files, f), append(fds, int(f.Fd()))
	}
	made := launch.NIC{Device: device}
	made.Number(&qmp.Files{Queues: files[:2], Vhosts: files[2:4], Netns: files[4], Label: files[5]}, &next)
	opened := launch.NIC{Device: device, Queues: fds[:2], Vhosts: fds[2:4], Netns: fds[4], Label: fds[5]}
	if diff := cmp.Diff(opened, made, cmpopts.IgnoreUnexported(qmp.NIC{})); diff != "" || next != 10 {
		t.Errorf("open, next %d (-want +got):\n%s", next, diff)
	}
}

func TestEnvironment(t *testing.T) {
	lower := nic("net1", 5, 2, true)
	lower.Type, lower.Source, lower.Netns, lower.Device.MAC = "macvtap", `e"th0`, 9, nil
	lower.Device.Options = map[string]string{"romfile": "/a b"}
	got, err := launch.Config{VM: "P2", NICs: []launch.NIC{nic("net0", 3, 1, false), lower}}.Command([]string{"vmm"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`VMNET_ARGS=-netdev tap,id=vmnet-net0-netdev,fds=3 -device virtio-net-pci,id=vmnet-net0,netdev=vmnet-net0-netdev,mac=52:54:00:00:00:03 ` +
			`-netdev tap,id=vmnet-net1-netdev,fds=5:6,vhostfds=7:8 -device 'virtio-net-pci,id=vmnet-net1,netdev=vmnet-net1-netdev,mq=on,vectors=6,romfile=/a b'`,
		`VMNET_JSON={"vm":"P2","nics":[` +
			`{"id":"net0","interface":"vm-net0","type":"tap","source":"br0","mac":"52:54:00:00:00:03","mtu":1500,"queues":[3],"vhosts":[],"netns":null,"netdev_id":"vmnet-net0-netdev","device_id":"vmnet-net0"},` +
			`{"id":"net1","interface":"vm-net1","type":"macvtap","source":"e\"th0","mac":"","mtu":1500,"queues":[5,6],"vhosts":[7,8],"netns":9,"netdev_id":"vmnet-net1-netdev","device_id":"vmnet-net1"}]}`,
	}
	if diff := cmp.Diff(want, got.Env); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A wrapper script gets the very arguments that QEMU would get.
func TestShellEvaluatesArguments(t *testing.T) {
	n := nic("net0", 3, 1, false)
	n.Device.Options = map[string]string{"romfile": "/a  *'$x"}
	got, err := launch.Config{VM: "it's  P2", NICs: []launch.NIC{n}}.Command([]string{"qemu-system-x86_64"})
	if err != nil {
		t.Fatal(err)
	}
	sh := exec.Command("sh", "-c", `eval "set -- $VMNET_ARGS"; for a; do printf '%s\0' "$a"; done`)
	sh.Env = got.Env
	out, err := sh.Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got.Argv[1:], strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHasMonitor(t *testing.T) {
	for line, want := range map[string]bool{
		"qemu-system-x86_64 -qmp unix:/q,server=on": true,
		"qemu-system-x86_64 -qmp stdio":             false,
		"qemu-system-x86_64":                        false,
		"vmm -qmp unix:/q,server=on":                false,
		"":                                          false,
	} {
		if got := launch.HasMonitor(strings.Fields(line)); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func FuzzCommand(f *testing.F) {
	f.Add("qemu-system-x86_64\x00-M\x00q35\x00{vmnet}\x00-device\x00pcie-root-port,chassis=1,id=vmnet-port0", "P2")
	f.Add("vmm\x00{vmnet}\x00{\"id\":\"x\"", "a,b")
	f.Add("kvm\x00-name\x00P2", "")
	f.Fuzz(func(t *testing.T, line, vm string) {
		argv := strings.Split(line, "\x00")
		c, err := launch.Config{
			VM: vm, SparePorts: 2,
			NICs: []launch.NIC{nic("net0", 3, 1, false), nic("net1", 4, 2, true)},
		}.Command(argv)
		if err != nil {
			if !errors.Is(err, launch.ErrInvalid) {
				t.Errorf("%q: %v", line, err)
			}
			return
		}
		user := slices.DeleteFunc(slices.Clone(argv), func(s string) bool { return s == launch.Placeholder })
		at := 0
		for _, arg := range c.Argv {
			if at < len(user) && arg == user[at] {
				at++
			}
		}
		if argv[0] != launch.Placeholder && at != len(user) {
			t.Errorf("%q became %q", argv, c.Argv)
		}
		var told map[string]any
		if err := json.Unmarshal([]byte(strings.TrimPrefix(c.Env[1], "VMNET_JSON=")), &told); err != nil {
			t.Error(err)
		}
	})
}
