package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/kernel/netns"
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

// capabilities are what dnsmasq wants as an ordinary user: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN,
// CAP_NET_RAW (include/uapi/linux/capability.h). It can enter no other namespace.
var capabilities = []uintptr{10, 12, 13}

const (
	startTimeout = 20 * time.Second     // from a program's start until it listens
	stopTimeout  = 2 * time.Second      // from SIGTERM to SIGKILL
	poll         = 2 * time.Millisecond // of what no event tells
	pipeTimeout  = time.Second          // for the rest of a program's words after its end
	maxWords     = 2048                 // bytes of them that are kept
)

// process is a running dnsmasq. It dies with this process, and what it has started with it: it is
// the first of a pid namespace.
type process struct {
	cmd   *exec.Cmd
	words tail
	done  chan struct{} // closed when it has ended
	err   error         // why, once done is closed
}

// start runs a program in ns.
func start(ns *netns.NS, program string, args []string, who *syscall.Credential) (*process, error) {
	p := &process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stderr, p.cmd.WaitDelay = "/", []string{"LC_ALL=C"}, &p.words, pipeTimeout
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: who, AmbientCaps: capabilities, Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
	}
	started := make(chan error, 1)
	go func() {
		// The thread that starts the program must outlive it: Pdeathsig is about the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := ns.Do(func() error {
			err := p.cmd.Start()
			started <- err
			if err == nil {
				p.err = p.cmd.Wait()
				close(p.done)
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return p, nil
}

// failure returns the error for a program that ended although nobody asked it to.
func (p *process) failure() error {
	err := p.err
	if err == nil {
		err = errors.New("it has ended")
	}
	return fmt.Errorf("%s: %w: %s", p.cmd.Path, err, strings.TrimSpace(p.words.String()))
}

// listening waits until dnsmasq has the sockets for DNS and for DHCP.
func (p *process) listening(ctx context.Context) error {
	const dns, dhcp = ":0035 ", ":0043 " // ports 53 and 67 in proc_net_udp(5)
	path := fmt.Sprintf("/proc/%d/net/udp", p.cmd.Process.Pid)
	for end := time.Now().Add(startTimeout); ; {
		table, _ := os.ReadFile(path)
		if bytes.Contains(table, []byte(dns)) && bytes.Contains(table, []byte(dhcp)) {
			return nil
		}
		select {
		case <-p.done:
			return p.failure()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not listen after %v", p.cmd.Path, startTimeout)
		}
	}
}

// wait returns when ctx ends, or with an error when one of the programs does.
func wait(ctx context.Context, all []*process) error {
	first := make(chan *process, len(all))
	for _, p := range all {
		go func() {
			<-p.done // at the latest by stop
			first <- p
		}()
	}
	select {
	case p := <-first:
		return p.failure()
	case <-ctx.Done():
		return nil
	}
}

// stop ends the programs, and waits for that.
func stop(all []*process) error {
	for _, p := range all {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	}
	late := time.After(stopTimeout)
	for _, p := range all {
		select {
		case <-p.done:
			continue
		case <-late:
		}
		for _, p := range all {
			_ = p.cmd.Process.Kill()
		}
		select {
		case <-p.done:
		case <-time.After(stopTimeout):
			return fmt.Errorf("process %d of %s does not end after SIGKILL", p.cmd.Process.Pid, p.cmd.Path)
		}
	}
	return nil
}

// tail keeps the last bytes that are written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-maxWords):]
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }
