// Package fastpath forwards frames between the packet ports of a userspace switch in the kernel.
// The process that opens a port's packet socket also loads two BPF programs (fastpath.c) and
// attaches them to the socket and to the device, for which it needs CAP_BPF and CAP_NET_ADMIN. The
// switch gets the maps as files, and needs no privilege: it writes to them (Table) which frames to
// forward, and reads how many were. All others come to the socket, as without the programs.
//
// Each port has maps of its own, so that a port needs nothing of the others but their place: a map
// with their device, which nobody can change. So a switch that has been taken over can have frames
// leave by the devices of its ports, and by no others. The programs go with the socket and with the
// file of the TCX link, also when all processes that have them are killed.
//
// The programs need Linux 6.6, which has TCX.
package fastpath

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
)

// FileCount is the number of files that Open returns.
const FileCount = 5

// object has the compiled programs, parsed once. Its users copy it.
var object = sync.OnceValues(loadFastpath)

// Open attaches the programs to a packet socket, which has no filter that matters afterwards, and
// to the device with that index in ns. leftOut lists IP protocols whose packets the socket is not
// to receive. Until a Table says so, no frame is forwarded. Open returns the files of the maps and
// of the link. The caller closes them.
func Open(ns *netns.NS, index int, socket *os.File, leftOut []byte) ([]*os.File, error) {
	files, err := open(ns, index, socket, leftOut)
	if err != nil {
		return nil, explain(err)
	}
	return files, nil
}

func open(ns *netns.NS, index int, socket *os.File, leftOut []byte) (files []*os.File, err error) {
	spec, err := object()
	if err != nil {
		return nil, err
	}
	spec = spec.Copy()
	var own fastpathOwn
	own.LeftOut = uint32(len(leftOut))
	if copy(own.Protocol[:], leftOut) < len(leftOut) {
		return nil, fmt.Errorf("%d protocols to leave out", len(leftOut))
	}
	err = fdpass.Control(socket, func(fd int) (err error) {
		own.Netns, err = NetnsCookie(fd)
		return err
	})
	if err == nil {
		err = spec.Variables[fastpathVarOwn].Set(own)
	}
	if err != nil {
		return nil, err
	}
	where, err := makePlace(spec, place{Netns: own.Netns, Device: uint32(index)})
	if err != nil {
		return nil, err
	}
	defer where.Close()
	var loaded fastpathObjects
	if err := spec.LoadAndAssign(&loaded, nil); err != nil {
		return nil, err
	}
	defer loaded.Close()
	var hook link.Link
	err = ns.Do(func() (err error) {
		hook, err = link.AttachTCX(link.TCXOptions{
			Interface: index, Program: loaded.VmnetForwards, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer hook.Close()
	defer func() {
		if err != nil {
			fdpass.CloseAll(files)
			files = nil
		}
	}()
	for _, o := range []struct {
		name string
		of   any
	}{
		{"addresses", loaded.Addresses},
		{"targets", loaded.Targets},
		{"counters", loaded.Counters},
		{"place", where},
		{"link", hook},
	} {
		f, err := fileOf("fast path, "+o.name, o.of.(interface{ FD() int }).FD())
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, fdpass.Control(socket, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, loaded.VmnetArrives.FD())
	})
}

// place is struct place of fastpath.c.
type place struct {
	Netns        uint64
	Device, Zero uint32
}

// makePlace makes a map that says where the port is, and that nobody can change.
func makePlace(spec *ebpf.CollectionSpec, at place) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec.Maps[fastpathMapTargets].InnerMap)
	if err != nil {
		return nil, err
	}
	if err = m.Put(uint32(0), at); err == nil {
		err = m.Freeze()
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// fileOf returns a copy of an fd as a file.
func fileOf(name string, fd int) (*os.File, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), name), nil
}

// explain says what the kernel or the process lacks.
func explain(err error) error {
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOSYS),
		errors.Is(err, unix.ENOPROTOOPT): // of SO_NETNS_COOKIE, before Linux 5.14
		return fmt.Errorf("%w (needs Linux 6.6 with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS)", ebpf.ErrNotSupported)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (needs CAP_BPF and CAP_NET_ADMIN where the port is opened)", unix.EPERM)
	}
	return fmt.Errorf("load a BPF program: %w", err)
}
