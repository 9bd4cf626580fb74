package network

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

// rival is a firewall of another program that runs in the host of a test. It has directories of its
// own in place of those of this machine that it writes to.
type rival struct {
	*h
	mounts string // its mount namespace
	start  func()
	// reload has it load its rules again.
	reload []string
	// kept is what it knows of networks, to be the same before and after.
	kept [][]string
}

// rivals are the programs that networks can be integrated with, by their names.
var rivals = map[string]func(*h) *rival{"Docker": docker, "ufw": ufw, "firewalld": firewalld}

// private makes a mount namespace in which these directories are copies. It ends with the test.
func (x *h) private(copies ...string) *rival {
	x.Helper()
	dir := x.TempDir()
	script := "mount -t tmpfs none /run && mkdir -p /run/lock /run/dbus /run/docker && mount -t tmpfs none /var/log"
	for i, path := range copies {
		script += fmt.Sprintf(" && cp -a %s %s/%d && mount --bind %[2]s/%[3]d %[1]s", path, dir, i)
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script+" && echo made && exec cat")
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if inErr != nil || outErr != nil {
		x.Fatal(inErr, outErr)
	}
	if err := cmd.Start(); err != nil {
		x.Fatal(err)
	}
	x.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "made\n" {
		x.Fatalf("%q, %v", line, err)
	}
	r := &rival{h: x, mounts: fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid)}
	x.m.Firewall = r.runs
	return r
}

// runs runs a program beside the firewall.
func (r *rival) runs(ctx context.Context, argv ...string) (string, error) {
	out, err := tool.Run(ctx, r.host, "", append([]string{"nsenter", "--mount=" + r.mounts, "--"}, argv...)...)
	return string(out), err
}

func (r *rival) must(argv ...string) string {
	r.Helper()
	out, err := r.runs(r.ctx(), argv...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// daemon runs a program until the end of the test, and waits until ready succeeds.
func (r *rival) daemon(ready []string, argv ...string) {
	r.Helper()
	cmd := exec.Command("nsenter", append([]string{"--mount=" + r.mounts, "--"}, argv...)...)
	// What the program starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	log, err := os.Create(filepath.Join(r.TempDir(), "log"))
	if err != nil {
		r.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := r.host.Do(cmd.Start); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	nstest.Eventually(r, patience, argv[0]+" runs", func() bool {
		_, err := r.runs(r.ctx(), ready...)
		return err == nil
	})
}

// snapshot is what the firewall knows of networks.
func (r *rival) snapshot() string {
	r.Helper()
	var b strings.Builder
	for _, argv := range r.kept {
		b.WriteString(r.must(argv...))
	}
	return b.String()
}

func requireProgram(x *h, program, pkg string) {
	x.Helper()
	_, err := tool.Find(program, pkg)
	nstest.Require(x, program, err == nil, "apt install "+pkg)
}

// dockerRules are those of a dockerd of Debian 12 that has been started, as iptables-save prints
// them.
const dockerRules = `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
`

// docker is dockerd itself where it is installed, and elsewhere its rules.
func docker(x *h) *rival {
	requireProgram(x, "iptables", "iptables")
	r := x.private()
	r.kept = [][]string{{"iptables", "-S", "DOCKER-USER"}, {"ip6tables", "-S", "DOCKER-USER"}}
	r.reload = []string{"true"}
	r.start = func() {
		if dockerd, err := tool.Find("dockerd", "docker.io"); err == nil {
			r.daemon([]string{"iptables", "-S", "DOCKER-USER"}, dockerd, "--data-root", x.TempDir(),
				"--exec-root=/run/docker", "--pidfile=/run/docker.pid", "--storage-driver=vfs")
		} else {
			file := filepath.Join(x.TempDir(), "rules")
			if err := os.WriteFile(file, []byte(dockerRules), 0o644); err != nil {
				x.Fatal(err)
			}
			r.must("iptables-restore", "--noflush", file)
		}
		// As dockerd with "ip6tables": true.
		for _, args := range []string{"-N DOCKER-USER", "-P FORWARD DROP", "-A FORWARD -j DOCKER-USER"} {
			r.must(append([]string{"ip6tables"}, strings.Fields(args)...)...)
		}
	}
	return r
}

func ufw(x *h) *rival {
	requireProgram(x, "ufw", "ufw")
	r := x.private("/etc/ufw", "/etc/default")
	r.kept = [][]string{{"ufw", "show", "added"}, {"iptables", "-S", "ufw-user-forward"}}
	r.reload = []string{"ufw", "reload"}
	r.start = func() { r.must("ufw", "--force", "enable") }
	return r
}

func firewalld(x *h) *rival {
	requireProgram(x, "firewalld", "firewalld")
	requireProgram(x, "dbus-daemon", "dbus-daemon")
	r := x.private("/etc/firewalld")
	r.kept = [][]string{{"firewall-cmd", "--permanent", "--get-zones"}, {"firewall-cmd", "--get-active-zones"}}
	r.reload = []string{"firewall-cmd", "--reload"}
	r.start = func() {
		r.daemon([]string{"test", "-S", "/run/dbus/system_bus_socket"},
			"dbus-daemon", "--system", "--nofork", "--nopidfile")
		r.daemon([]string{"firewall-cmd", "--state"}, "firewalld", "--nofork", "--nopid")
	}
	return r
}
