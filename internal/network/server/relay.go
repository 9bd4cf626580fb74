package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/child"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/dnsrelay"
)

// resolvPoll is how often the relay looks at the host's resolv.conf, as dnsmasq does.
const resolvPoll = time.Second

// relay keeps a dnsrelay for the name servers that the host has on its loopback interface. It runs
// only while there are any.
type relay struct {
	c       Config
	inner   *netns.NS // of the server
	who     *syscall.Credential
	note    func(error)
	servers []netip.Addr // those of the running one
	failed  string       // what note got last
	process *child.Process
}

// loopbackServers returns the name servers that need a relay.
func (c Config) loopbackServers() ([]netip.Addr, error) {
	if !c.Network.Gateway().IsValid() {
		return nil, nil // dnsmasq asks nobody
	}
	up, err := dhcp.ReadUpstream(c.resolv())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return up.Loopback[:min(len(up.Loopback), dnsrelay.MaxAddresses)], err
}

// update starts and stops the relay as resolv.conf says now. What fails is noted once. A relay that
// does not start is tried again at the next call; one that lacks some of its sockets goes on.
func (r *relay) update() {
	servers, err := r.c.loopbackServers()
	if err == nil && !slices.Equal(servers, r.servers) {
		if err = r.stop(); err == nil && len(servers) > 0 {
			err = r.start(servers)
		}
	}
	failed := ""
	if err != nil {
		failed = fmt.Sprintf("network %s: not all name servers on the host's loopback interface are asked: %v",
			r.c.Network.Name, err)
	}
	if failed != r.failed && failed != "" {
		r.note(errors.New(failed))
	}
	r.failed = failed
}

// start starts the relay. It is an error, too, if it has no sockets for some of the servers.
func (r *relay) start(servers []netip.Addr) error {
	files, err := dnsrelay.Open(r.inner, servers)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if len(files) == 0 {
		return err
	}
	cmd := exec.Command(self, append(slices.Clone(RelayVerb), strconv.Itoa(len(files)))...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = files
	// In the host's namespace, where it is what any user of the host is.
	p, startErr := start(r.c.NS, cmd, r.who, nil)
	if startErr == nil {
		r.process, r.servers = p, servers
	}
	return errors.Join(err, startErr)
}

func (r *relay) stop() error {
	if r.process == nil {
		return nil
	}
	err := child.Stop(r.process)
	r.process, r.servers = nil, nil
	return err
}

// run keeps the relay as resolv.conf says until ctx ends. ended has why it cannot: the relay has
// ended. stop ends all this.
func (r *relay) run(ctx context.Context) (ended <-chan error, stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	followed := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.follow(ctx); err != nil {
			followed <- err
		}
	}()
	return followed, func() error {
		cancel()
		<-done
		return r.stop()
	}
}

// follow is run. It returns nil when ctx ends.
func (r *relay) follow(ctx context.Context) error {
	for {
		var ended <-chan struct{}
		if r.process != nil {
			ended = r.process.Done()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			return r.process.Failure()
		case <-time.After(resolvPoll):
			r.update()
		}
	}
}
