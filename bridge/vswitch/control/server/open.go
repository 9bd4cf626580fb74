package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
)

// open makes the wire of a port, which rest is left of. It copies the files.
func open(p *control.Port, files []*os.File, rest vswitch.Rest) (*vswitch.Wire, error) {
	var w *vswitch.Wire
	var err error
	switch p.Kind {
	case control.Tap:
		w, err = openTap(p, files, rest)
	case control.Packet:
		w, err = vswitch.OpenPacketFiles(files)
		if err == nil && p.NoFastPath != "" {
			w.NoFastPath(p.NoFastPath)
		}
	case control.Stream:
		w, err = vswitch.OpenStream(files[0], filepath.Base(p.Device))
		w, err = keptIn(w, err, files[1:], rest)
	case control.VhostUser:
		w, err = vswitch.OpenVhostUser(files[0], filepath.Base(p.Device), max(p.Queues, 1))
		w, err = keptIn(w, err, files[1:], rest)
	case control.Tun:
		w, err = openTun(p, files, rest)
	case control.VXLAN:
		w, err = vswitch.OpenVXLANFiles(files, *p.VXLAN)
	default:
		mtu := p.Config.MTU
		if mtu == 0 {
			mtu = 1500 // the port's default
		}
		w, err = vswitch.OpenSocket(files[0], mtu)
	}
	if err == nil {
		if err = roomForClients(); err != nil {
			err = errors.Join(err, w.Close())
		}
	}
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return nil, fmt.Errorf("%w: the switch has no file descriptors left for more ports "+
			"(raise ulimit -n, or LimitNOFILE= of its unit)", err)
	case errors.Is(err, unix.ENODEV):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w port: %w", brport.ErrInvalid, err)
	}
	return w, nil
}

// keptIn has a wire that was opened without an error use its journal, if it has one.
func keptIn(w *vswitch.Wire, err error, journal []*os.File, rest vswitch.Rest) (*vswitch.Wire, error) {
	if err == nil && len(journal) > 0 {
		if err = w.Keep(journal[0], rest.Killed); err != nil {
			err = errors.Join(err, w.Close())
		}
	}
	return w, err
}

func openTap(p *control.Port, files []*os.File, rest vswitch.Rest) (*vswitch.Wire, error) {
	queues := len(files)
	if p.Link {
		queues--
	}
	w, err := vswitch.OpenTap(files[:queues]...)
	if err != nil {
		return nil, err
	}
	if p.Verified {
		w.Verified()
	}
	return follow(p, w, files[queues:], rest)
}

func openTun(p *control.Port, files []*os.File, rest vswitch.Rest) (*vswitch.Wire, error) {
	w, err := vswitch.OpenTun(files[0], p.Config.MACs[0], *p.Tun)
	if err != nil {
		return nil, err
	}
	return follow(p, w, files[1:], rest)
}

// follow makes the wire follow its device if the port has a link file, which is then the first one.
// It takes ownership of the wire.
func follow(p *control.Port, w *vswitch.Wire, files []*os.File, rest vswitch.Rest) (*vswitch.Wire, error) {
	if !p.Link {
		return w, nil
	}
	if err := w.FollowOn(files[0], rest); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// spareFiles is the number of fds that ports must leave free, so that clients can still connect and
// remove ports.
const spareFiles = 16

func roomForClients() error {
	var err error
	var fds []int
	for range spareFiles {
		fd, openErr := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if openErr != nil {
			err = openErr
			break
		}
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return err
}
