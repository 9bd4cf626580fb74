// Package ovstest runs Open vSwitch's own ovsdb-server and ovs-vswitchd for tests, in a directory
// and a network namespace of the test. The switch forwards in user space (datapath type netdev),
// which needs no kernel module, unless UseKernel is called.
package ovstest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

// Cure says how to have what these tests need.
const Cure = "run testvm/setup.sh, which installs openvswitch-switch"

const (
	schema  = "/usr/share/openvswitch/vswitch.ovsschema"
	startIn = 30 * time.Second
)

// An OVS is a database and, once StartSwitch has been called, a switch. They end with the test.
type OVS struct {
	Dir string // has their sockets and files

	tb               testing.TB
	datapath         string // type
	ns               *netns.NS
	database, daemon *exec.Cmd // nil unless they run
}

// New makes a database without rows but the root, in which the server of ovs.Socket runs. ns is
// where a switch will look for devices, nil the current namespace.
func New(tb testing.TB, ns *netns.NS) *OVS {
	tb.Helper()
	require(tb)
	o := prepared(tb, ns)
	o.tool("ovsdb-tool", "create", o.file("conf.db"), schema)
	o.StartDatabase()
	o.Vsctl("--no-wait", "init")
	return o
}

// require skips the test where a program is missing. Debian's servers are in /usr/sbin, which is
// not in the PATH of an ordinary user.
func require(tb testing.TB) {
	tb.Helper()
	for _, program := range []string{"ovsdb-server", "ovs-vswitchd", "ovs-vsctl"} {
		_, err := exec.LookPath(program)
		nstest.Require(tb, "openvswitch", err == nil, Cure)
	}
}

// prepared is a directory in which nothing runs yet.
func prepared(tb testing.TB, ns *netns.NS) *OVS {
	tb.Helper()
	dir, err := os.MkdirTemp("", "ovs") // a socket's path must be short, and tb.TempDir's is not
	if err != nil {
		tb.Fatal(err)
	}
	o := &OVS{Dir: dir, tb: tb, datapath: "netdev", ns: ns}
	tb.Cleanup(func() {
		o.StopSwitch()
		o.StopDatabase()
		_ = os.RemoveAll(dir)
	})
	return o
}

// Socket returns the path of the database's socket.
func (o *OVS) Socket() string { return o.file("db.sock") }

func (o *OVS) file(name string) string { return filepath.Join(o.Dir, name) }

// StartDatabase starts ovsdb-server and waits until it listens.
func (o *OVS) StartDatabase() {
	o.tb.Helper()
	_ = os.Remove(o.Socket())
	files, _ := filepath.Glob(o.file("*.db"))
	o.database = o.start("ovsdb-server", append(files, "--remote=punix:"+o.Socket(),
		"--unixctl="+o.file("ovsdb.ctl"), "--log-file="+o.file("ovsdb.log"), "-vconsole:off")...)
	o.await("ovsdb-server listens", o.Socket())
}

// StopDatabase kills ovsdb-server, if it runs.
func (o *OVS) StopDatabase() { end(&o.database) }

// UseKernel has bridges that are made from now on forward in the kernel, which takes its modules
// openvswitch and, for OVN, geneve.
func (o *OVS) UseKernel() { o.datapath = "system" }

// StartSwitch starts ovs-vswitchd.
func (o *OVS) StartSwitch() {
	o.tb.Helper()
	o.daemon = o.start("ovs-vswitchd", "unix:"+o.Socket(), "--unixctl="+o.file("vswitchd.ctl"),
		"--log-file="+o.file("vswitchd.log"), "-vconsole:off")
	o.await("ovs-vswitchd listens", o.file("vswitchd.ctl"))
}

// StopSwitch kills ovs-vswitchd, if it runs.
func (o *OVS) StopSwitch() {
	end(&o.daemon)
	_ = os.Remove(o.file("vswitchd.ctl"))
}

// Pause stops ovsdb-server by SIGSTOP, until Resume.
func (o *OVS) Pause() { o.signal(o.database, syscall.SIGSTOP) }

// Resume lets ovsdb-server continue.
func (o *OVS) Resume() { o.signal(o.database, syscall.SIGCONT) }

// PauseSwitch stops ovs-vswitchd by SIGSTOP, until ResumeSwitch.
func (o *OVS) PauseSwitch() { o.signal(o.daemon, syscall.SIGSTOP) }

// ResumeSwitch lets ovs-vswitchd continue.
func (o *OVS) ResumeSwitch() { o.signal(o.daemon, syscall.SIGCONT) }

// AddBridge makes a bridge, and brings up the device of that name.
func (o *OVS) AddBridge(name string) {
	o.tb.Helper()
	o.Vsctl("--timeout=30", "add-br", name, "--", "set", "bridge", name, "datapath_type="+o.datapath)
}

// Vsctl runs ovs-vsctl and returns its output without the last newline.
func (o *OVS) Vsctl(args ...string) string {
	o.tb.Helper()
	return o.tool("ovs-vsctl", append([]string{"--db=unix:" + o.Socket()}, args...)...)
}

func (o *OVS) tool(name string, args ...string) string {
	o.tb.Helper()
	cmd := o.command(name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := o.ns.Do(cmd.Run); err != nil {
		o.tb.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func (o *OVS) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = os.Environ()
	for _, name := range []string{
		"OVS_RUNDIR", "OVS_DBDIR", "OVS_SYSCONFDIR", "OVS_LOGDIR", "OVN_RUNDIR", "OVN_LOGDIR",
	} {
		cmd.Env = append(cmd.Env, name+"="+o.Dir)
	}
	return cmd
}

func (o *OVS) start(name string, args ...string) *exec.Cmd {
	o.tb.Helper()
	cmd := o.command(name, args...)
	if err := o.ns.Do(cmd.Start); err != nil {
		o.tb.Fatal(err)
	}
	return cmd
}

func (o *OVS) await(what, socket string) {
	o.tb.Helper()
	nstest.Eventually(o.tb, startIn, what, func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
}

func (o *OVS) signal(cmd *exec.Cmd, sig syscall.Signal) {
	o.tb.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		o.tb.Fatal(err)
	}
}

// end kills a process, which may be stopped, and reaps it.
func end(cmd **exec.Cmd) {
	if *cmd == nil {
		return
	}
	err := (*cmd).Process.Kill()
	if err == nil || errors.Is(err, os.ErrProcessDone) {
		_ = (*cmd).Wait()
	}
	*cmd = nil
}
