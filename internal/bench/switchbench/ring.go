package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/testpmd"
)

// A ringPeer is one of the compared backends of guests that share their memory: frames go round
// between two guests, which are one testpmd.
type ringPeer struct {
	name  string
	ours  bool
	start func(r *ring, t *tools) error
	ready func(r *ring) (bool, error) // both guests are connected

	missing func(t *tools) error
	works   []string // if not all
}

// Names of the backends to which ratios refer.
const (
	ringPolls = "vmnet switch, vhost-user, --poll"
	ringEvent = "vmnet switch, vhost-user"
	ringPMD   = "DPDK's vhost PMD, io"
	ringOVS   = "Open vSwitch with DPDK"
	ringTaps  = "kernel bridge between taps"
)

func ringPeers() []*ringPeer {
	return []*ringPeer{
		{name: ringTaps, start: startTapBridge, works: []string{ring64, ring1500}},
		{name: ringPMD, start: startPMD, ready: (*ring).pmdReady, missing: needTestpmd},
		{
			name: ringOVS, start: startOVSDPDK, ready: (*ring).ovsReady, missing: needOVSDPDK,
			works: []string{ring64, ring1500, hop},
		},
		{name: ringEvent, ours: true, start: startRingEvent, ready: (*ring).oursReady, missing: needTestpmd},
		{name: ringPolls, ours: true, start: startRingPolls, ready: (*ring).oursReady, missing: needPolling},
	}
}

// ringsBefore returns our switches of another build.
func ringsBefore() (all []*ringPeer) {
	for _, p := range ringPeers() {
		if p.ours {
			old := *p
			theirs := func(t *tools) *tools {
				other := *t
				other.vmnet = t.before
				return &other
			}
			old.name += beforeSuffix
			old.start = func(r *ring, t *tools) error { return p.start(r, theirs(t)) }
			old.missing = func(t *tools) error { return p.missing(theirs(t)) }
			all = append(all, &old)
		}
	}
	return all
}

func ringPeerNamed(name string) *ringPeer {
	for _, p := range ringPeers() {
		if p.name == name {
			return p
		}
	}
	return nil
}

func needTestpmd(t *tools) error {
	_, err := testpmd.Find()
	if err == nil {
		_, err = os.Stat(t.vmnet)
	}
	return err
}

// needPolling finds out whether a build of vmnet can poll.
func needPolling(t *tools) error {
	help, err := exec.Command(t.vmnet, "switch", "run", "--help").Output()
	if err == nil && !strings.Contains(string(help), "--poll ") {
		err = errors.New("it has no --poll")
	}
	return errors.Join(needTestpmd(t), err)
}

func needOVSDPDK(t *tools) error {
	_, err := os.Stat(t.vswitchdDPDK())
	return errors.Join(needTestpmd(t), err)
}

func (t *tools) vswitchdDPDK() string {
	return filepath.Join(t.ovsDPDK, "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")
}

// A ring is a backend that runs, with the sockets of both guests. It has one processor, and
// testpmd the other. One that polls for ever is stopped between its samples.
type ring struct {
	*lan
	peer    *ringPeer
	cpus    [2]int // of testpmd, and of the backend
	sockets [2]string
	control string // our switch's socket
	vsctl   func(...string) (string, error)
	pmd     *testpmd.Testpmd
	endless bool
}

func (r *ring) pids() (all []int) {
	if r.pmd != nil {
		all = append(all, r.pmd.PID())
	}
	for _, p := range r.procs {
		all = append(all, p.cmd.Process.Pid)
	}
	return all
}

// signal stops the backend between samples, or lets it go on.
func (r *ring) signal(s unix.Signal) {
	for _, pid := range r.pids() {
		if r.endless {
			_ = unix.Kill(pid, s)
		}
	}
}

// newRing starts a backend.
func newRing(p *ringPeer, cpus [2]int, t *tools) (*ring, error) {
	r := &ring{lan: &lan{}, peer: p, cpus: cpus}
	dir, err := os.MkdirTemp(t.dir, "ring")
	if err == nil {
		r.sockets = [2]string{filepath.Join(dir, "p0"), filepath.Join(dir, "p1")}
		r.in, r.nl, err = r.namespace()
	}
	if err == nil {
		err = p.start(r, t)
	}
	if err != nil {
		for _, p := range r.all() {
			err = errors.Join(err, p.alive())
		}
		r.close()
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	r.signal(unix.SIGSTOP)
	return r, nil
}

func (r *ring) close() {
	r.signal(unix.SIGCONT)
	if r.pmd != nil {
		r.pmd.Kill()
	}
	r.lan.close()
}

// onCPU returns a command line that runs on the backend's processor.
func (r *ring) onCPU(argv ...string) []string {
	return append([]string{"taskset", "-c", strconv.Itoa(r.cpus[1])}, argv...)
}

// listens waits until the backend listens at both sockets.
func (r *ring) listens() error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := os.Stat(r.sockets[0])
		_, err2 := os.Stat(r.sockets[1])
		if err = errors.Join(err, err2); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// startTapBridge makes a bridge for taps that each sample makes.
func startTapBridge(r *ring, _ *tools) error { return r.makeBridge() }

func startRingEvent(r *ring, t *tools) error { return startOurRing(r, t) }

// ringPoll is how long a polling switch looks for frames.
const ringPoll = "50us"

func startRingPolls(r *ring, t *tools) error {
	return startOurRing(r, t, "--poll", ringPoll, "--poll-cpus", strconv.Itoa(r.cpus[1]))
}

func startOurRing(r *ring, t *tools, args ...string) error {
	r.control = filepath.Join(filepath.Dir(r.sockets[0]), "socket")
	argv := append(r.onCPU(t.vmnet, "switch", "run", r.control), args...)
	for _, s := range r.sockets {
		argv = append(argv, "--vhost-user", s+",mtu=65500")
	}
	if err := r.spawn(program{argv: argv}); err != nil {
		return err
	}
	return r.listens()
}

func (r *ring) oursReady() (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := control.Dial(ctx, r.control)
	if err != nil {
		return false, nil // it does not listen yet
	}
	defer c.Close()
	ports, err := c.Ports(ctx)
	up := 0
	for _, p := range ports {
		if p.Stats.State == vport.StateUp {
			up++
		}
	}
	return up == len(r.sockets), err
}

// startPMD starts DPDK's example of a backend, which looks at no address.
func startPMD(r *ring, _ *tools) (err error) {
	cfg := testpmd.Config{
		Dir: filepath.Dir(r.sockets[0]), CPUs: strconv.Itoa(r.cpus[1]), Memory: 128, Mbufs: 8192,
		Args: []string{"--tx-offloads=0x8000"},
	}
	for i, s := range r.sockets {
		cfg.Devices = append(cfg.Devices, fmt.Sprintf("net_vhost%d,iface=%s", i, s))
	}
	if r.pmd, err = testpmd.Start(cfg); err != nil {
		return err
	}
	r.endless = true
	_, err = r.pmd.Do("set fwd io", "start")
	return errors.Join(err, r.listens())
}

func (r *ring) pmdReady() (bool, error) {
	out, err := r.pmd.Do("show port info 0", "show port info 1")
	return strings.Count(out, "Link status: up") == 2, err
}

// startOVSDPDK starts an Open vSwitch of its own with both ports. Its database is on any processor.
func startOVSDPDK(r *ring, t *tools) error {
	dir := filepath.Dir(r.sockets[0])
	env := []string{
		"OVS_RUNDIR=" + dir, "OVS_LOGDIR=" + dir, "OVS_DBDIR=" + dir, "OVS_SYSCONFDIR=" + dir,
		"RUNTIME_DIRECTORY=" + dir,
	}
	dpdk, err := testpmd.Find()
	if err != nil {
		return err
	}
	db := "unix:" + filepath.Join(dir, "db.sock")
	if err := r.database(t, dir, env); err != nil {
		return err
	}
	r.vsctl = func(args ...string) (string, error) {
		argv := append([]string{filepath.Join(t.ovs, "usr/bin/ovs-vsctl"), "--db=" + db, "--timeout=30"}, args...)
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	mask := fmt.Sprintf("%#x", 1<<r.cpus[1])
	// Legacy memory is that of --no-huge. Memory for each port is what fits into it.
	if _, err := r.vsctl("--no-wait", "--retry", "init", "--", "set", "Open_vSwitch", ".",
		"other_config:dpdk-init=true", "other_config:per-port-memory=true",
		"other_config:dpdk-extra=--no-huge --legacy-mem --no-pci --no-shconf --no-telemetry -m 512",
		"other_config:dpdk-lcore-mask="+mask, "other_config:pmd-cpu-mask="+mask); err != nil {
		return err
	}
	if err := r.spawn(program{
		argv: r.onCPU(t.vswitchdDPDK(), db), env: append(env, testpmd.Environment(dpdk)...),
	}); err != nil {
		return err
	}
	r.endless = true
	args := []string{"add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"}
	for _, s := range r.sockets {
		name := filepath.Base(s)
		args = append(args, "--", "add-port", "br0", name, "--", "set", "interface", name, "type=dpdkvhostuser")
	}
	_, err = r.vsctl(args...)
	return errors.Join(err, r.listens())
}

func (r *ring) ovsReady() (bool, error) {
	for _, s := range r.sockets {
		state, err := r.vsctl("get", "interface", filepath.Base(s), "link_state")
		if err != nil || state != "up" {
			return false, err
		}
	}
	return true, nil
}
