package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/network/child"
	"vmnet/internal/network/server"
)

// orderTime bounds an order: one that restarts dnsmasq takes longest.
const orderTime = 40 * time.Second

// endTime bounds the end of an agent that has closed its socket.
const endTime = time.Second

// agentClient is the supervisor's side of its agent.
type agentClient struct {
	process *child.Process
	mu      sync.Mutex // held during an order
	sock    *fdpass.Socket
}

// startAgent starts this program as an agent in namespaces of its own, in which it has the
// capabilities that it needs. The user's id is the same inside: dnsmasq as root would give up
// groups, which a user namespace of an ordinary user forbids (user_namespaces(7)).
func startAgent() (*agentClient, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	sock, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := &exec.Cmd{Path: self, Args: []string{agentName}, Dir: "/", Env: os.Environ(), ExtraFiles: []*os.File{theirs}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}},
		AmbientCaps: server.Capabilities,
	}
	p, err := child.Start(cmd, nil)
	if err != nil {
		return nil, errors.Join(explainUserNS(err), sock.Close())
	}
	return &agentClient{process: p, sock: sock}, nil
}

// ask sends an order with copies of the files, and waits for the answer. The caller closes the
// files that come with it.
func (a *agentClient) ask(ctx context.Context, o order, sent ...*os.File) (r report, files []*os.File, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// A blocked agent ends, and with it the network.
	ctx, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	undo := context.AfterFunc(ctx, func() { _ = child.Stop(a.process) })
	defer undo()
	data, err := json.Marshal(o)
	if err == nil {
		err = a.sock.Send(data, sent...)
	}
	var answer []byte
	if err == nil {
		answer, files, err = a.sock.Receive(maxOrder)
	}
	if err == nil {
		err = json.Unmarshal(answer, &r)
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		fdpass.CloseAll(files)
		return r, nil, a.explain(err)
	}
	return r, files, nil
}

// explain returns why the agent has ended, if it has closed its socket.
func (a *agentClient) explain(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	select {
	case <-a.process.Done():
		return fmt.Errorf("its namespace's process has ended: %w", a.process.Failure())
	case <-time.After(endTime):
		return err
	}
}

// close ends the agent.
func (a *agentClient) close() error {
	// The agent ignores SIGTERM, and ends when the socket does.
	err := a.sock.Close()
	return errors.Join(err, child.Stop(a.process))
}
