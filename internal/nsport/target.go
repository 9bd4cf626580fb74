package nsport

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/kernel/rtnl"
)

// openTimeout bounds the lookup of a path, which may lead to a file system of another user that
// does not answer.
const openTimeout = 5 * time.Second

// target is the namespace of an attachment. It stays open, and so the same one, until close.
type target struct {
	ns    *netns.NS
	nl    *rtnl.Conn // in ns
	inode uint64
	name  string // as it was given
}

// openTarget opens the namespace that a text names. A path is opened only if it leads to a network
// namespace, and a process is held while its namespace is opened, so that the PID does not name
// another one by then.
func openTarget(ctx context.Context, text string) (*target, error) {
	ns, err := openNamed(ctx, text)
	if err != nil {
		return nil, err
	}
	t := &target{ns: ns, name: text}
	if t.inode, err = ns.Inode(); err == nil {
		t.nl, err = rtnl.Open(ns)
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return t, nil
}

func (t *target) close() {
	t.nl.Close()
	_ = t.ns.Close()
}

func openNamed(ctx context.Context, text string) (*netns.NS, error) {
	pid, ok := isPID(text)
	if !ok {
		return openWithin(ctx, text)
	}
	if _, err := os.Lstat(filepath.Join(netns.RunDir, text)); err == nil {
		return nil, fmt.Errorf("netns %s: it is the name of a netns and a PID: give %s, or /proc/%[1]s/ns/net",
			text, filepath.Join(netns.RunDir, text))
	}
	h, err := pidfd.Open(pid)
	if err != nil {
		return nil, fmt.Errorf("netns of process %d: %w", pid, err)
	}
	defer func() { _ = h.Close() }()
	ns, err := openWithin(ctx, fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	if err := h.Check(); err != nil { // the PID may have named another process when it was opened
		return nil, errors.Join(fmt.Errorf("netns of process %d: %w", pid, err), ns.Close())
	}
	return ns, nil
}

// isPID parses a process id.
func isPID(text string) (pid int, ok bool) {
	pid, err := strconv.Atoi(text)
	return pid, err == nil && pid > 0 && strconv.Itoa(pid) == text
}

// openWithin is netns.Open that gives up after a while.
func openWithin(ctx context.Context, path string) (*netns.NS, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout,
		fmt.Errorf("a file system on its way does not answer within %v", openTimeout))
	defer cancel()
	type result struct {
		ns  *netns.NS
		err error
	}
	done := make(chan result, 1)
	go func() {
		ns, err := netns.Open(path)
		done <- result{ns, err}
	}()
	select {
	case r := <-done:
		return r.ns, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.ns.Close()
			}
		}()
		return nil, fmt.Errorf("open netns %q: %w", path, context.Cause(ctx))
	}
}
