package qemu

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
)

func TestMentions(t *testing.T) {
	for arg, want := range map[string]bool{
		"/run/a":                            true,
		"unix:/run/a":                       true,
		"unix:/run/a,server=on":             true,
		"socket,id=x,path=/run/a":           true,
		`{"data":{"path":"/run/a"},"id":1}`: true,
		"path=/run/ab,other=/run/a":         true,
		"unix:/run/ab":                      false,
		"unix:/x/run/a":                     false,
		"":                                  false,
	} {
		if got := mentions(arg, "/run/a"); got != want {
			t.Errorf("%q: %v, want %v", arg, got, want)
		}
	}
	if mentions("a=,", "") {
		t.Error("an empty word is mentioned")
	}
}

// TestSockets has this process listen, and say in several ways which of its sockets is a monitor.
func TestSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "socks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Chdir(dir)
	for _, name := range []string{dir + "/a,b", "l", "con"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	a := Escape(dir + "/a,b")
	for line, want := range map[string]string{
		"-qmp unix:" + a + ",server=on -qmp unix:l,server=on":                  "l told;" + dir + "/a,b told",
		"-qmp unix:l,server=on -qmp unix:gone,server=on":                       "l told",
		"-serial unix:con,server=on":                                           dir + "/a,b;l",
		"-serial unix:con,server=on -gdb unix:" + a + ",server":                "l",
		"-qmp unix:gone,server=on -serial unix:con -gdb unix:l -vnc unix:" + a: "no longer listens on gone",
		"-qmp stdio -serial unix:con -gdb unix:l -vnc unix:" + a:               "has only",
		"-serial unix:con -gdb unix:l -vnc unix:" + a:                          "has none on its command line",
	} {
		argv := append([]string{"qemu"}, strings.Fields(line)...)
		p := Process{PID: os.Getpid(), CmdLine: Parse(argv), args: argv}
		all, err := p.Sockets()
		var got []string
		for _, s := range all {
			if s.Told {
				s.Name += " told"
			}
			got = append(got, s.Name)
		}
		switch {
		case err == nil && strings.Join(got, ";") != want:
			t.Errorf("%s: %q, want %q", line, got, want)
		case err != nil && (!errors.Is(err, ErrNoMonitor) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

func TestOptionsOfAQEMUWithAnotherName(t *testing.T) {
	for line, want := range map[string]bool{
		"vmm -name x -qmp unix:/q,server":              true,
		"vmm -readconfig rc":                           true,
		"taskset -c 0 qemu-system-x86_64 -qmp unix:/q": false,
		"docker run --name web -m 512m --device x":     false,
		"ssh -M -S /run/ssh host":                      false,
		"systemd-nspawn --machine web":                 false,
		"sh -c qemu-system-x86_64":                     false,
		"vmm":                                          false,
	} {
		if got := hasQEMUOptions(strings.Fields(line)); got != want {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}
