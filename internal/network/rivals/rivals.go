// Package rivals runs other programs' firewalls in the host of a test: Docker's rules, ufw and
// firewalld. Each has directories of its own in place of those of this machine that it writes to.
package rivals

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

// patience bounds a wait on a loaded machine.
const patience = 60 * time.Second

// A Rival is a firewall of another program in the host of a test. It ends with the test.
type Rival struct {
	Start func()
	// Reload has it load its rules again.
	Reload []string

	tb     testing.TB
	ns     *netns.NS
	mounts string // its mount namespace
	// kept is what it knows of networks, to be the same before and after.
	kept [][]string
}

// All make the programs that networks can be integrated with, by their names. They do not run yet.
var All = map[string]func(testing.TB, *netns.NS) *Rival{"Docker": docker, "ufw": ufw, "firewalld": firewalld}

// private makes a mount namespace in which these directories are copies. It ends with the test.
func private(tb testing.TB, ns *netns.NS, copies ...string) *Rival {
	tb.Helper()
	dir := tb.TempDir()
	script := "mount -t tmpfs none /run && mkdir -p /run/lock /run/dbus /run/docker && mount -t tmpfs none /var/log"
	for i, path := range copies {
		script += fmt.Sprintf(" && cp -a %s %s/%d && mount --bind %[2]s/%[3]d %[1]s", path, dir, i)
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script+" && echo made && exec cat")
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if inErr != nil || outErr != nil {
		tb.Fatal(inErr, outErr)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "made\n" {
		tb.Fatalf("%q, %v", line, err)
	}
	return &Rival{tb: tb, ns: ns, mounts: fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid)}
}

// Runs runs a program beside the firewall, and returns its output.
func (r *Rival) Runs(ctx context.Context, argv ...string) (string, error) {
	out, err := tool.Run(ctx, r.ns, "", append([]string{"nsenter", "--mount=" + r.mounts, "--"}, argv...)...)
	return string(out), err
}

// Must is Runs, and fails the test with the program.
func (r *Rival) Must(argv ...string) string {
	r.tb.Helper()
	out, err := r.Runs(context.Background(), argv...)
	if err != nil {
		r.tb.Fatal(err)
	}
	return out
}

// daemon runs a program until the end of the test, and waits until ready succeeds.
func (r *Rival) daemon(ready []string, argv ...string) {
	r.tb.Helper()
	cmd := exec.Command("nsenter", append([]string{"--mount=" + r.mounts, "--"}, argv...)...)
	// What the program starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	log, err := os.Create(filepath.Join(r.tb.TempDir(), "log"))
	if err != nil {
		r.tb.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := r.ns.Do(cmd.Start); err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	nstest.Eventually(r.tb, patience, argv[0]+" runs", func() bool {
		_, err := r.Runs(context.Background(), ready...)
		return err == nil
	})
}

// Snapshot is what the firewall knows of networks.
func (r *Rival) Snapshot() string {
	r.tb.Helper()
	var b strings.Builder
	for _, argv := range r.kept {
		b.WriteString(r.Must(argv...))
	}
	return b.String()
}

func requireProgram(tb testing.TB, program, pkg string) {
	tb.Helper()
	_, err := tool.Find(program, pkg)
	nstest.Require(tb, program, err == nil, "apt install "+pkg)
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
func docker(tb testing.TB, ns *netns.NS) *Rival {
	requireProgram(tb, "iptables", "iptables")
	r := private(tb, ns)
	r.kept = [][]string{{"iptables", "-S", "DOCKER-USER"}, {"ip6tables", "-S", "DOCKER-USER"}}
	r.Reload = []string{"true"}
	r.Start = func() {
		if dockerd, err := tool.Find("dockerd", "docker.io"); err == nil {
			r.daemon([]string{"iptables", "-S", "DOCKER-USER"}, dockerd, "--data-root", tb.TempDir(),
				"--exec-root=/run/docker", "--pidfile=/run/docker.pid", "--storage-driver=vfs")
		} else {
			file := filepath.Join(tb.TempDir(), "rules")
			if err := os.WriteFile(file, []byte(dockerRules), 0o644); err != nil {
				tb.Fatal(err)
			}
			r.Must("iptables-restore", "--noflush", file)
		}
		// As dockerd with "ip6tables": true.
		for _, args := range []string{"-N DOCKER-USER", "-P FORWARD DROP", "-A FORWARD -j DOCKER-USER"} {
			r.Must(append([]string{"ip6tables"}, strings.Fields(args)...)...)
		}
	}
	return r
}

func ufw(tb testing.TB, ns *netns.NS) *Rival {
	requireProgram(tb, "ufw", "ufw")
	r := private(tb, ns, "/etc/ufw", "/etc/default")
	r.kept = [][]string{{"ufw", "show", "added"}, {"iptables", "-S", "ufw-user-forward"}}
	r.Reload = []string{"ufw", "reload"}
	r.Start = func() { r.Must("ufw", "--force", "enable") }
	return r
}

func firewalld(tb testing.TB, ns *netns.NS) *Rival {
	requireProgram(tb, "firewalld", "firewalld")
	requireProgram(tb, "dbus-daemon", "dbus-daemon")
	r := private(tb, ns, "/etc/firewalld")
	r.kept = [][]string{{"firewall-cmd", "--permanent", "--get-zones"}, {"firewall-cmd", "--get-active-zones"}}
	r.Reload = []string{"firewall-cmd", "--reload"}
	r.Start = func() {
		r.daemon([]string{"test", "-S", "/run/dbus/system_bus_socket"},
			"dbus-daemon", "--system", "--nofork", "--nopidfile")
		r.daemon([]string{"firewall-cmd", "--state"}, "firewalld", "--nofork", "--nopid")
	}
	return r
}
