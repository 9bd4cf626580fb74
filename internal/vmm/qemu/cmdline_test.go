package qemu_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/vmm/qemu"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]qemu.CmdLine{
		"-name P2 -qmp unix:/run/p2.qmp,server=on,wait=off": {
			Name:     "P2",
			Monitors: []qemu.Monitor{{Path: "/run/p2.qmp"}},
		},
		"--name guest=P2,debug-threads=on --qmp unix:q,server,nowait": {
			Name:     "P2",
			Monitors: []qemu.Monitor{{Path: "q"}},
		},
		"-name a,,b,process=x": {Name: "a,b"},
		"-mon m,mode=control -chardev socket,id=m,path=/q,server=on": {Monitors: []qemu.Monitor{{Path: "/q"}}},
		"-chardev socket,id=m,path=/q,server=on -mon chardev=m":      {},
		"-mon chardev=gone,mode=control":                             {},
		"-qmp unix:/a,server=on -qmp-pretty unix:/b,server=on": {Monitors: []qemu.Monitor{
			{Path: "/a"},
			{Path: "/b"},
		}},
		"-qmp tcp:localhost:4444,server=on": {Others: []string{
			"a monitor on TCP, which carries no file descriptors",
		}},
		"-qmp stdio": {Others: []string{
			`a monitor on "stdio", which takes no file descriptors`,
		}},
		"-qmp unix:/q": {Others: []string{
			"a monitor that connects to /q instead of listening",
		}},
		"-qmp unix:/q,server=on,abstract=on":                      {Monitors: []qemu.Monitor{{Path: "@/q"}}},
		"-chardev socket,id=c,fd=5,server=on -mon c,mode=control": {Monitors: []qemu.Monitor{{FD: 5}}},
		"-qmp unix:fd=5,server=on,wait=off":                       {Monitors: []qemu.Monitor{{FD: 5}}},
		"-chardev socket,id=c,fd=5 -mon c,mode=control": {Others: []string{
			"a monitor on a connection that it has inherited",
		}},
		"-chardev socket,id=c,fd=x,server -mon c,mode=control": {Others: []string{
			`a monitor on the file descriptor "x"`,
		}},
		"-chardev socket,id=c,path=/q,server=on,wait=off -qmp chardev:c -chardev socket,id=d,path=/d,server=on -serial chardev:d":                                     {Monitors: []qemu.Monitor{{Path: "/q"}}},
		`-chardev {"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/q"}},"wait":false,"server":true}}} -mon chardev=c,mode=control`: {Monitors: []qemu.Monitor{{Path: "/q"}}},
		`-chardev {"id":"c","backend":{"type":"socket","data":{"addr":{"type":"fd","data":{"str":"7"}},"server":true}}} -mon {"chardev":"c","mode":"control"}`:        {Monitors: []qemu.Monitor{{FD: 7}}},
		`-chardev {"id":"c","backend":"socket","path":"/q","server":"on"} -qmp chardev:c`:                                                                             {Monitors: []qemu.Monitor{{Path: "/q"}}},
		"-preconfig -qmp unix:/q,server=on -S": {Monitors: []qemu.Monitor{{Path: "/q"}}},
		"-chardev socket,id=charmonitor,path=/var/lib/libvirt/qemu/domain--1-v/monitor.sock,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control": {Monitors: []qemu.Monitor{{Path: "/var/lib/libvirt/qemu/domain--1-v/monitor.sock"}}},
		"-chardev socket,id=charmonitor,fd=24,server=on -mon chardev=charmonitor,id=monitor,mode=control -name guest=v":                                          {Name: "v", Libvirt: true},
		`-uuid 6a1b -object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/qemu/domain-1-v/master-key.aes"}`:                     {UUID: "6a1b", Dir: "/var/lib/libvirt/qemu/domain-1-v"},
		"-object secret,id=masterKey0,format=raw,file=/d/../e/k":                                                                                                 {Dir: "/e"},
		"-object secret,id=masterKey0,file=k -object secret,id=other,file=/d/k -object rng-random,id=masterKey0,file=/d/k -object {":                             {},
		"-device virtio-net-pci,id=x -name": {},
		"-kernel -name":                     {},
		"":                                  {},
	} {
		argv := append([]string{"qemu-system-x86_64"}, strings.Fields(line)...)
		if diff := cmp.Diff(want, qemu.Parse(argv)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", line, diff)
		}
	}
}

func TestParseKeepsBlanksAndEquals(t *testing.T) {
	got := qemu.Parse([]string{
		"qemu", "-name", "guest=my vm=1", "-chardev", "socket,id=q,path=/tmp/a b=c,server=on",
		"-qmp", "chardev:q",
	})
	want := qemu.CmdLine{Name: "my vm=1", Monitors: []qemu.Monitor{{Path: "/tmp/a b=c"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("-name\x00P2\x00-qmp\x00unix:/q,server=on")
	f.Add("-chardev\x00socket,id=m,path=,,\x00-mon\x00m,mode=control")
	f.Add("-uuid\x00-object\x00-object\x00{\"qom-type\":\"secret\",\"id\":\"masterKey0\",\"file\":\"/k\"}")
	f.Add("-name\x00,,,=,\x00-qmp\x00:\x00-qmp")
	f.Fuzz(func(t *testing.T, line string) {
		argv := strings.Split(line, "\x00")
		c := qemu.Parse(argv)
		for _, m := range c.Monitors {
			if m.Path == "" && m.FD <= 0 {
				t.Errorf("%q: a monitor nowhere", line)
			}
		}
		if len(c.Monitors)+len(c.Others) > len(argv) {
			t.Errorf("%q: more monitors than arguments", line)
		}
	})
}
