package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
)

// Running returns the port of a network's server; nil if none runs. A port of that name that is
// somebody else's is an error.
func Running(nl *rtnl.Conn, n *config.Network) (*rtnl.Link, error) {
	l, err := nl.Link(n.ServerLink())
	if err == nil {
		if mark, ok := config.ParseServerMark(l.Alias); ok && mark.Network == n.Name {
			return l, nil
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("%s is not the server of network %s, but something else's (ip link show %[1]s)",
		l.Name, n.Name)
}

// Stop ends the server of a network, even if another process has started it, and waits until
// nothing of it is left. If none runs, that is success.
func Stop(ctx context.Context, nl *rtnl.Conn, n *config.Network) error {
	port, err := Running(nl, n)
	if err != nil || port == nil {
		return err
	}
	inside, err := Processes(nl, port)
	defer func() {
		for _, p := range inside {
			_ = p.Close()
		}
	}()
	if err != nil {
		return err
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, p := range inside {
			err = errors.Join(err, p.Signal(s))
		}
		gone, goneErr := away(ctx, nl, port.Index)
		if err = errors.Join(err, goneErr); gone || err != nil {
			return err
		}
	}
	// No process keeps its namespace, or one that is not seen from here does.
	return rtnl.IgnoreNotExist(nl.Delete(port.Index))
}

// away waits for the end of a link, for a while.
func away(ctx context.Context, nl *rtnl.Conn, index int) (bool, error) {
	for end := time.Now().Add(stopTimeout); time.Now().Before(end); {
		_, err := nl.LinkByIndex(index)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(poll):
		}
	}
	return false, nil
}

// Processes returns those in the namespace behind a server's port. The caller closes them.
func Processes(nl *rtnl.Conn, port *rtnl.Link) (inside []*pidfd.Handle, err error) {
	nsid := port.LowerNS
	if nsid < 0 {
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	known := map[string]bool{} // namespaces by their names in /proc, and whether they are that one
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		h, err := pidfd.Open(pid)
		if err != nil {
			continue // it has ended
		}
		if isInside(nl, nsid, pid, known) && h.Alive() {
			inside = append(inside, h)
		} else if err := h.Close(); err != nil {
			return inside, err
		}
	}
	return inside, nil
}

func isInside(nl *rtnl.Conn, nsid, pid int, known map[string]bool) bool {
	path := filepath.Join("/proc", strconv.Itoa(pid), "ns", "net")
	name, err := os.Readlink(path)
	if err != nil {
		return false // it has ended, or may not be looked at
	}
	is, ok := known[name]
	if ok {
		return is
	}
	ns, err := netns.Open(path)
	if err != nil {
		return false
	}
	defer ns.Close()
	id, err := nl.NetnsID(ns)
	known[name] = err == nil && id == nsid
	return known[name]
}
