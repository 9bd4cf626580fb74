package qemu_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/vmm/qemu"
)

func TestParse(t *testing.T) {
	for _, row := range []struct {
		line string
		want qemu.CmdLine
	}{
		{"-name P2 -qmp unix:/run/p2.qmp,server=on,wait=off", qemu.CmdLine{
			Name:     "P2",
			Monitors: []qemu.Monitor{{Path: "/run/p2.qmp"}},
		}},
		{"--name guest=P2,debug-threads=on --qmp unix:q,server,nowait", qemu.CmdLine{
			Name:     "P2",
			Monitors: []qemu.Monitor{{Path: "q"}},
		}},
		{"-name a,,b,process=x", qemu.CmdLine{Name: "a,b"}},
		{
			"-mon m,mode=control -chardev socket,id=m,path=/q,server=on",
			qemu.CmdLine{Monitors: []qemu.Monitor{{Path: "/q"}}},
		},
		{"-chardev socket,id=m,path=/q,server=on -mon chardev=m", qemu.CmdLine{}},
		{"-mon chardev=gone,mode=control", qemu.CmdLine{}},
		{"-qmp unix:/a,server=on -qmp-pretty unix:/b,server=on", qemu.CmdLine{Monitors: []qemu.Monitor{
			{Path: "/a"},
			{Path: "/b"},
		}}},
		{
			"-qmp tcp:localhost:4444,server=on",
			qemu.CmdLine{Others: []string{"a monitor on TCP, which carries no file descriptors"}},
		},
		{
			"-qmp stdio",
			qemu.CmdLine{Others: []string{`a monitor on "stdio", which takes no file descriptors`}},
		},
		{
			"-qmp unix:/q",
			qemu.CmdLine{Others: []string{"a monitor that connects to /q instead of listening"}},
		},
		{"-qmp unix:/q,server=on,abstract=on", qemu.CmdLine{Monitors: []qemu.Monitor{{Path: "@/q"}}}},
		{
			"-chardev socket,id=c,fd=5,server=on -mon c,mode=control",
			qemu.CmdLine{Monitors: []qemu.Monitor{{FD: 5}}},
		},
		{"-qmp unix:fd=5,server=on,wait=off", qemu.CmdLine{Monitors: []qemu.Monitor{{FD: 5}}}},
		{
			"-chardev socket,id=c,fd=5 -mon c,mode=control",
			qemu.CmdLine{Others: []string{"a monitor on a connection that it has inherited"}},
		},
		{
			"-chardev socket,id=c,fd=x,server -mon c,mode=control",
			qemu.CmdLine{Others: []string{`a monitor on the file descriptor "x"`}},
		},
		{
			"-chardev socket,id=c,path=/q,server=on,wait=off -qmp chardev:c -chardev socket,id=d,path=/d,server=on -serial chardev:d",
			qemu.CmdLine{Monitors: []qemu.Monitor{{Path: "/q"}}},
		},
		{
			`-chardev {"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/q"}},"wait":false,"server":true}}} -mon chardev=c,mode=control`,
			qemu.CmdLine{Monitors: []qemu.Monitor{{Path: "/q"}}},
		},
		{
			`-chardev {"id":"c","backend":{"type":"socket","data":{"addr":{"type":"fd","data":{"str":"7"}},"server":true}}} -mon {"chardev":"c","mode":"control"}`,
			qemu.CmdLine{Monitors: []qemu.Monitor{{FD: 7}}},
		},
		{
			`-chardev {"id":"c","backend":"socket","path":"/q","server":"on"} -qmp chardev:c`,
			qemu.CmdLine{Monitors: []qemu.Monitor{{Path: "/q"}}},
		},
		{"-preconfig -qmp unix:/q,server=on -S", qemu.CmdLine{Monitors: []qemu.Monitor{{Path: "/q"}}}},
		{
			"-chardev socket,id=charmonitor,path=/var/lib/libvirt/qemu/domain--1-v/monitor.sock,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control",
			qemu.CmdLine{Monitors: []qemu.Monitor{{Path: "/var/lib/libvirt/qemu/domain--1-v/monitor.sock"}}},
		},
		{
			"-chardev socket,id=charmonitor,fd=24,server=on -mon chardev=charmonitor,id=monitor,mode=control -name guest=v",
			qemu.CmdLine{Name: "v", Libvirt: true},
		},
		{
			`-uuid 6a1b -object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/qemu/domain-1-v/master-key.aes"}`,
			qemu.CmdLine{UUID: "6a1b", Dir: "/var/lib/libvirt/qemu/domain-1-v"},
		},
		{"-object secret,id=masterKey0,format=raw,file=/d/../e/k", qemu.CmdLine{Dir: "/e"}},
		{
			"-object secret,id=masterKey0,file=k -object secret,id=other,file=/d/k -object rng-random,id=masterKey0,file=/d/k -object {",
			qemu.CmdLine{},
		},
		{"-name P2 --incoming defer", qemu.CmdLine{Name: "P2", Incoming: true}},
		{
			"-chardev socket,path=/run/ga,server=on,wait=off,id=ga -device virtio-serial " +
				"-device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
			qemu.CmdLine{Agent: "/run/ga"},
		},
		{ // libvirt passes the socket itself; a client is no server
			"-chardev socket,fd=3,server=on,id=ga -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
			qemu.CmdLine{},
		},
		{
			"-chardev socket,path=ga,id=ga -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
			qemu.CmdLine{},
		},
		{"-device virtio-net-pci,id=x -name", qemu.CmdLine{}},
		{"-kernel -name", qemu.CmdLine{}},
		{"", qemu.CmdLine{}},
	} {
		line, want := row.line, row.want
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
