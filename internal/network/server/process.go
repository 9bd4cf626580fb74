package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/child"
)

// users are those as which dnsmasq may run, in this order: its own, which Debian's package makes.
var users = []string{"dnsmasq", "nobody"}

// account returns the ids that dnsmasq gets.
func account() (*syscall.Credential, error) {
	for _, name := range users {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 31)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 31)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{}}, nil
	}
	return nil, fmt.Errorf("dnsmasq needs a user of its own (useradd --system %s)", users[0])
}

// Capabilities are what dnsmasq wants as an ordinary user: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN,
// CAP_NET_RAW (include/uapi/linux/capability.h). It can enter no other namespace.
var Capabilities = []uintptr{10, 12, 13}

const (
	startTimeout = 20 * time.Second     // from a program's start until it listens
	stopTimeout  = 2 * time.Second      // from SIGTERM to SIGKILL
	poll         = 2 * time.Millisecond // of what no event tells
	maxWords     = 2048                 // bytes of a program's words that are kept
)

// start runs a program in ns, with capabilities. What it has started dies with it: it is the first
// of a pid namespace.
func start(ns *netns.NS, cmd *exec.Cmd, who *syscall.Credential, capabilities []uintptr) (*child.Process, error) {
	cmd.Dir, cmd.Env = "/", []string{"LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: who, AmbientCaps: capabilities, Cloneflags: syscall.CLONE_NEWPID,
	}
	return child.Start(cmd, ns.Do)
}

// Listening waits until dnsmasq has the sockets for DNS and for DHCP. proc is the directory in
// /proc of a process or thread in its namespace.
func Listening(ctx context.Context, p *child.Process, proc string) error {
	const dns, dhcp = ":0035 ", ":0043 " // ports 53 and 67 in proc_net_udp(5)
	for end := time.Now().Add(startTimeout); ; {
		table, _ := os.ReadFile(proc + "/net/udp")
		if bytes.Contains(table, []byte(dns)) && bytes.Contains(table, []byte(dhcp)) {
			return nil
		}
		select {
		case <-p.Done():
			return p.Failure()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
		if time.Now().After(end) {
			return fmt.Errorf("dnsmasq does not listen after %v", startTimeout)
		}
	}
}
