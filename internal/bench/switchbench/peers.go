package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
)

// A peer is one of the compared switches.
type peer struct {
	name   string // in tables and plots
	ours   bool
	guests bool // the stations are behind programs that take a VMM's place, which cost as much again
	needs  string
	start  func(l *lan, t *tools) error
}

// tools are the paths of the peers' programs.
type tools struct {
	dir       string // for sockets and such; its own
	traffic   string
	reference string
	vmnet     string
	before    string // another build of vmnet, to compare with; empty for none
	ovs       string // directory in which Open vSwitch was unpacked
	ovsDPDK   string // the same of its build with DPDK
	taps      string
}

// Names of the peers to which ratios refer.
const (
	bridgeName = "kernel bridge, veth"
	vdeName    = "vde_switch, tap"
	ovsName    = "Open vSwitch netdev"
	ovsTSOName = "Open vSwitch netdev, userspace-tso"
	plainName  = "C reference"
	superName  = "C reference, super-frames"
	oursName   = "vmnet switch, tap"
	oursPlain  = "vmnet switch, tap, offloads off"
	oursPacket = "vmnet switch, packet on veth"
	viaSocket  = "vmnet switch, guest by socket"
	viaTap     = "vmnet switch, guest by tap"
)

func peers() []*peer {
	return []*peer{
		{name: bridgeName, start: startBridge},
		{name: vdeName, needs: "vde_switch", start: startVDE},
		{name: ovsName, needs: "ovs-vswitchd", start: func(l *lan, t *tools) error { return startOVS(l, t, false) }},
		{name: ovsTSOName, needs: "ovs-vswitchd", start: func(l *lan, t *tools) error { return startOVS(l, t, true) }},
		{name: plainName, start: func(l *lan, t *tools) error { return startReference(l, t.reference) }},
		{name: superName, start: func(l *lan, t *tools) error { return startReference(l, t.reference, "-g") }},
		{name: oursName, ours: true, start: startTaps},
		{name: oursPlain, ours: true, start: startTapsWithoutOffloads},
		{name: oursPacket, ours: true, start: startPackets},
		{name: viaSocket, ours: true, guests: true, start: startGuestSockets},
		{name: viaTap, ours: true, guests: true, start: startGuestTaps},
	}
}

func peerNamed(name string) *peer {
	for _, p := range peers() {
		if p.name == name {
			return p
		}
	}
	return nil
}

// beforeSuffix marks the rows of another build of our switch.
const beforeSuffix = ", before"

// before returns our switches of another build.
func before() (all []*peer) {
	for _, p := range peers() {
		if p.ours {
			old := *p
			old.name += beforeSuffix
			old.start = func(l *lan, t *tools) error {
				theirs := *t
				theirs.vmnet = t.before
				return p.start(l, &theirs)
			}
			all = append(all, &old)
		}
	}
	return all
}

// missing returns what a peer lacks, or "" if it lacks nothing.
func (p *peer) missing(t *tools) string {
	var err error
	switch {
	case p.ours:
		_, err = exec.LookPath(t.vmnet)
	case p.needs == "ovs-vswitchd":
		_, err = os.Stat(t.vswitchd())
	case p.needs != "":
		_, err = exec.LookPath(p.needs)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func (t *tools) vswitchd() string {
	return filepath.Join(t.ovs, "usr/lib/openvswitch-switch/ovs-vswitchd")
}

// startBridge makes a kernel bridge, which needs no program.
func startBridge(l *lan, _ *tools) error {
	if err := errors.Join(l.makeBridge(), l.veths()); err != nil {
		return err
	}
	return l.bridgePorts(l.names()...)
}

const bridgeDevice = "br0"

func (l *lan) makeBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeDevice
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := l.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("make a bridge: %w", err)
	}
	return l.nl.LinkSetUp(br)
}

// bridgePorts makes interfaces ports of the bridge, which is up.
func (l *lan) bridgePorts(names ...string) error {
	br, err := l.nl.LinkByName(bridgeDevice)
	if err != nil {
		return err
	}
	for _, name := range names {
		link, err := l.nl.LinkByName(name)
		if err == nil {
			err = errors.Join(l.nl.LinkSetMaster(link, br), l.nl.LinkSetUp(link))
		}
		if err != nil {
			return fmt.Errorf("port %s: %w", name, err)
		}
	}
	return nil
}

// startVDE starts a vde_switch with enough ports: by default it has 32, and drops further ones
// silently.
func startVDE(l *lan, t *tools) error {
	sock, err := os.MkdirTemp(t.dir, "vde")
	if err != nil {
		return err
	}
	argv := []string{"vde_switch", "-s", filepath.Join(sock, "ctl"), "-n", "256"}
	for _, name := range l.names() {
		argv = append(argv, "-tap", name)
	}
	// It exits at the end of its standard input, unless it is a daemon.
	in, hold, err := os.Pipe()
	if err != nil {
		return err
	}
	l.undo = append(l.undo, func() { _ = hold.Close() })
	defer in.Close()
	if err := l.spawn(program{argv: argv, in: in}); err != nil {
		return err
	}
	return l.moveTaps()
}

// startOVS starts an Open vSwitch database and switch of its own.
func startOVS(l *lan, t *tools, tso bool) error {
	dir, err := os.MkdirTemp(t.dir, "ovs")
	if err != nil {
		return err
	}
	env := []string{"OVS_RUNDIR=" + dir, "OVS_LOGDIR=" + dir, "OVS_DBDIR=" + dir, "OVS_SYSCONFDIR=" + dir}
	sock := "unix:" + filepath.Join(dir, "db.sock")
	if err := l.database(t, dir, env); err != nil {
		return err
	}
	set := func(args ...string) error {
		argv := append([]string{filepath.Join(t.ovs, "usr/bin/ovs-vsctl"), "--db=" + sock}, args...)
		return program{argv: argv, env: env}.run(l.in)
	}
	if err := set("--no-wait", "--retry", "--timeout=9", "init"); err != nil {
		return err
	}
	if err := set("--no-wait", "set", "Open_vSwitch", ".",
		fmt.Sprintf("other_config:userspace-tso-enable=%v", tso)); err != nil {
		return err
	}
	if err := l.spawn(program{argv: []string{t.vswitchd(), sock}, env: env}); err != nil {
		return err
	}
	args := []string{"--timeout=9", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"}
	for _, name := range l.names() {
		args = append(args, "--", "add-port", "br0", name, "--", "set", "interface", name, "type=internal")
	}
	if err := set(args...); err != nil {
		return err
	}
	return l.moveTaps()
}

// database starts an Open vSwitch database with files in dir, on the socket db.sock there.
func (l *lan) database(t *tools, dir string, env []string) error {
	db, sock := filepath.Join(dir, "conf.db"), "unix:"+filepath.Join(dir, "db.sock")
	schema := filepath.Join(t.ovs, "usr/share/openvswitch/vswitch.ovsschema")
	if err := (program{argv: []string{"ovsdb-tool", "create", db, schema}, env: env}).run(l.in); err != nil {
		return err
	}
	return l.spawn(program{argv: []string{"ovsdb-server", db, "--remote=p" + sock}, env: env})
}

func startReference(l *lan, argv ...string) error {
	if err := l.spawn(program{argv: append(argv, l.names()...)}); err != nil {
		return err
	}
	return l.moveTaps()
}

// ours starts our switch, with a port of that kind for each name.
func (l *lan) ours(t *tools, kind string, names ...string) (socket string, err error) {
	return l.oursWith(t, nil, kind, names...)
}

// oursWith is ours with further arguments.
func (l *lan) oursWith(t *tools, args []string, kind string, names ...string) (socket string, err error) {
	dir, err := os.MkdirTemp(t.dir, "vmnet")
	if err != nil {
		return "", err
	}
	socket = filepath.Join(dir, "socket")
	argv := append([]string{t.vmnet, "switch", "run", socket}, args...)
	for _, name := range names {
		argv = append(argv, "--"+kind, name)
	}
	return socket, l.spawn(program{argv: argv})
}

func startTaps(l *lan, t *tools) error {
	if _, err := l.ours(t, "tap", l.names()...); err != nil {
		return err
	}
	return l.moveTaps()
}

// startTapsWithoutOffloads disables the taps' offloads, so that the stations' kernels segment and
// compute checksums themselves, as with the taps of vde_switch.
func startTapsWithoutOffloads(l *lan, t *tools) error {
	if err := startTaps(l, t); err != nil {
		return err
	}
	for i, s := range []*station{l.a, l.b} {
		if err := s.ns.Do(func() error { return offloadsOff(portName(i)) }); err != nil {
			return err
		}
	}
	return nil
}

func startPackets(l *lan, t *tools) error {
	if err := l.veths(); err != nil {
		return err
	}
	_, err := l.ours(t, "packet", l.names()...)
	return err
}

// startGuestSockets connects stations as QEMU's "netdev dgram" does: datagrams, one frame each.
func startGuestSockets(l *lan, t *tools) error {
	socket, err := l.ours(t, "")
	if err != nil {
		return err
	}
	for i, s := range []*station{l.a, l.b} {
		near, far, err := endpoint.SocketFiles()
		if err != nil {
			return err
		}
		guest := fmt.Sprintf("guest%d", i)
		err = l.addPort(socket, control.Port{Name: guest, Kind: "socket"}, near)
		if err == nil {
			err = l.pump(program{argv: []string{t.reference, guest, "fd:3"}, files: []*os.File{far}})
		}
		if err = errors.Join(err, near.Close(), far.Close()); err == nil {
			err = l.move(guest, s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// addPort adds a port to our switch once it listens.
func (l *lan) addPort(socket string, p control.Port, files ...*os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := control.Dial(ctx, socket)
	for ; err != nil && ctx.Err() == nil; c, err = control.Dial(ctx, socket) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	return errors.Join(c.AddPort(ctx, p, files...), c.Close())
}

// startGuestTaps connects stations as QEMU's "netdev tap" does. The switch uses the tap's interface
// through a packet socket.
func startGuestTaps(l *lan, t *tools) error {
	for i, s := range []*station{l.a, l.b} {
		guest := fmt.Sprintf("guest%d", i)
		if err := l.pump(program{argv: []string{t.reference, "-g", guest, portName(i)}}); err != nil {
			return err
		}
		link, err := l.await(portName(i))
		if err == nil {
			err = errors.Join(l.nl.LinkSetUp(link), l.move(guest, s))
		}
		if err != nil {
			return err
		}
	}
	_, err := l.ours(t, "packet", l.names()...)
	return err
}

// offloadsOff disables a device's checksum offload, and with it the offloads that depend on it
// (ethtool -K NAME tx off).
func offloadsOff(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_STXCSUM, 0} // struct ethtool_value of include/uapi/linux/ethtool.h
	ifr := struct {                                              // struct ifreq of netdevice(7)
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(ifr.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL,
		uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return fmt.Errorf("ETHTOOL_STXCSUM %s: %w", name, errno)
	}
	return nil
}
