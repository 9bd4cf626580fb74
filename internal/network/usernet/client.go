package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"vmnet/bridge/vswitch/control"
	swserver "vmnet/bridge/vswitch/control/server"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/network/config"
)

// errNotRunning is returned for a network that does not run.
var errNotRunning = errors.New("it does not run")

// errHangs is returned for a network whose supervisor does not answer.
var errHangs = errors.New("its process does not answer (is it stopped? vmnet network delete --force ends it)")

// Times of a client: for the state of a network, for a change, and for the end of its processes.
const (
	stateTime  = 10 * time.Second
	changeTime = orderTime + startTime + talkTime
	stopTime   = 5 * time.Second
)

// doorOf returns the paths of a network's socket and of its switch's.
func doorOf(name string) (network, sw string, err error) {
	if sw, err = control.Path(name); err != nil {
		return "", "", err
	}
	return filepath.Join(filepath.Dir(sw), socketName), sw, nil
}

// dial connects to the supervisor of a network of this user, whose process the caller closes.
func dial(ctx context.Context, name string) (*net.UnixConn, *pidfd.Handle, error) {
	path, _, err := doorOf(name)
	if err != nil {
		return nil, nil, err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, nil, errNotRunning
	case err != nil:
		return nil, nil, err
	}
	conn := c.(*net.UnixConn)
	peer, err := fdpass.PeerOf(conn)
	if err == nil && int(peer.Uid) != os.Geteuid() {
		err = fmt.Errorf("%s: another user listens there", path)
	}
	var process *pidfd.Handle
	if err == nil {
		process, err = pidfd.Open(int(peer.Pid))
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, process, nil
}

// tell sends a request to a network's supervisor, and returns the answer.
func tell(ctx context.Context, name string, r request) (w wire, process *pidfd.Handle, err error) {
	conn, process, err := dial(ctx, name)
	if err != nil {
		return w, nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	data, err := json.Marshal(r)
	if err == nil {
		err = fdpass.SendOver(conn, data)
	}
	var answer []byte
	if err == nil {
		answer, _, err = fdpass.ReceiveOver(conn, make([]byte, maxRequest), 0)
	}
	if err == nil {
		err = json.Unmarshal(answer, &w)
	}
	if err == nil && w.Error != "" {
		err = errors.New(w.Error)
	}
	switch {
	case err == nil:
	case context.Cause(ctx) != nil:
		err = context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = errNotRunning // it has ended meanwhile
	}
	return w, process, err
}

// statusOf returns how a network stands; errNotRunning if it does not run.
func statusOf(ctx context.Context, name string) (*Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, stateTime, errHangs)
	defer cancel()
	w, process, err := tell(ctx, name, request{Do: doState})
	if process != nil {
		defer process.Close()
	}
	if err != nil {
		return nil, err
	}
	if w.State == nil {
		return nil, errors.New("its process sent no state")
	}
	w.State.Text = w.Text
	_, w.State.Socket, err = doorOf(name)
	return w.State, err
}

// knownTime bounds the wait for a server that gets to know a guest.
const knownTime = 10 * time.Second

// AwaitAddress waits until the server of a network of this user gives an address to a guest's NIC
// that was attached with it.
func AwaitAddress(ctx context.Context, name string, mac net.HardwareAddr, a netip.Addr) error {
	ctx, cancel := context.WithTimeoutCause(ctx, knownTime, fmt.Errorf("network %s: its server does not give %s to %s "+
		"after %v (vmnet network show %[1]s says where its log is)", name, a, mac, knownTime))
	defer cancel()
	for {
		st, err := statusOf(ctx, name)
		switch {
		case context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("network %s: %w", name, err)
		case slices.Contains(st.Reserved, reservation(mac, a)):
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(namesPoll / 4):
		}
	}
}

// remake has a running network become what n says.
func remake(ctx context.Context, n *config.Network) error {
	ctx, cancel := context.WithTimeoutCause(ctx, changeTime, errHangs)
	defer cancel()
	_, process, err := tell(ctx, n.Name, request{Do: doMake, Text: string(n.Format())})
	if process != nil {
		_ = process.Close()
	}
	return err
}

// stop ends a network, whatever state its processes are in, and removes what killed ones have left.
// One that does not run is success. A switch of that name which is no network's is left alone.
func stop(ctx context.Context, name string) error {
	if err := halt(ctx, name); !errors.Is(err, errNotRunning) {
		return errors.Join(err, clear(name))
	}
	err := clear(name)
	if errors.Is(err, swserver.ErrRunning) { // it was about to start, and clear has waited for that
		err = halt(ctx, name)
	}
	if errors.Is(err, errNotRunning) {
		return nil
	}
	return err
}

// halt ends the processes of a network; errNotRunning if it does not run.
func halt(ctx context.Context, name string) error {
	asked, cancel := context.WithTimeoutCause(ctx, stopTime, errHangs)
	defer cancel()
	_, process, err := tell(asked, name, request{Do: doStop})
	if process == nil {
		return err
	}
	defer process.Close()
	for _, s := range []syscall.Signal{0, syscall.SIGTERM, syscall.SIGKILL} {
		if err = process.Signal(s); err == nil && gone(ctx, process) {
			return nil
		}
	}
	return errors.Join(err, fmt.Errorf("network %s: process %d does not end", name, process.PID))
}

// gone waits for the end of a process, for a while, and reports whether it came.
func gone(ctx context.Context, p *pidfd.Handle) bool {
	for end := time.Now().Add(stopTime); p.Alive(); {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(poll):
		}
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// clear removes the sockets that a killed supervisor has left. If a switch of that name runs, the
// error matches swserver.ErrRunning.
func clear(name string) error {
	network, sw, err := doorOf(name)
	if err != nil {
		return err
	}
	place, err := swserver.Prepare(name, os.Geteuid(), os.Getegid())
	if err != nil {
		return fmt.Errorf("remove %s: %w", sw, err)
	}
	defer place.Forget()
	if err := os.Remove(network); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
