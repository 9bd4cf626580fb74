package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/holders"
	"vmnet/internal/inventory"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// A Domain is a guest that libvirt manages. libvirt plugs and unplugs those of its NICs that were
// handed over by name, and stores what makes them come back.
type Domain struct {
	*libvirt.Conn
	maker *backend.Maker
	dom   libvirt.Domain
	found *Found   // nil: the domain is off
	lock  *os.File // nil: it is only read, or off
	user  int      // whose own libvirt this is; 0 for the machine's
}

// guest returns the domain as a Guest whose NICs libvirt plugs.
func (d *Domain) guest() *Guest {
	return &Guest{Found: d.found, Plugger: d, Unplugger: d, Domain: d, close: []io.Closer{d}}
}

// ByMonitor returns the domain as a Guest whose NICs are plugged by libvirt's monitor commands.
// Closing the Guest closes the domain, and so does an error.
func (d *Domain) ByMonitor(ctx context.Context) (*Guest, error) {
	conn, err := dialThroughLibvirt(ctx, d.Conn, d.dom)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	m := &Monitor{conn: conn, found: d.found}
	return &Guest{Found: d.found, Plugger: m, Unplugger: m, Monitor: m, close: []io.Closer{conn, d}}, nil
}

// openDomain connects to libvirt and waits for the domain's lock.
func (f *Finder) openDomain(ctx context.Context, g *Found) (*Domain, error) {
	d, err := f.dialDomain(ctx, g, false)
	if err != nil {
		return nil, err
	}
	if err := d.takeLock(ctx, f.Progress); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// OpenStored opens a domain that may be off. There is nothing to lock then. Close the Domain.
func (f *Finder) OpenStored(ctx context.Context, vm string) (*Domain, error) {
	conn, err := f.dialLibvirt(ctx, nil, false)
	if err != nil {
		return nil, err
	}
	d := &Domain{Conn: conn, maker: f.Maker}
	if d.dom, err = d.LookupByName(ctx, vm); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// dialDomain connects to the libvirt that manages the guest, and has it confirm the process:
// anybody can write anything on a command line, but libvirt knows which UUID runs under that name.
func (f *Finder) dialDomain(ctx context.Context, g *Found, readOnly bool) (*Domain, error) {
	conn, err := f.dialLibvirt(ctx, g.candidates(), readOnly)
	if err != nil {
		return nil, fmt.Errorf("guest %s is %w: %w", g.target.VM, qemu.ErrLibvirt, err)
	}
	d := &Domain{Conn: conn, maker: f.Maker, found: g}
	if err := d.identify(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("guest %s: %w", g.target.VM, err), d.Close())
	}
	return d, nil
}

// dialLibvirt connects to the libvirt of the processes.
func (f *Finder) dialLibvirt(ctx context.Context, procs []qemu.Process, readOnly bool) (*libvirt.Conn, error) {
	dialer := chooseLibvirt(f.Libvirt, procs, os.Geteuid())
	dialer.ReadOnly = readOnly
	return dialer.Dial(ctx)
}

// chooseLibvirt decides which libvirt is asked: the one that is named by its URI or socket, else
// the caller's own for the caller's own guest, else the machine's.
func chooseLibvirt(named string, procs []qemu.Process, caller int) libvirt.Dialer {
	switch {
	case filepath.IsAbs(named):
		return libvirt.Dialer{Path: named}
	case named == "" && caller != 0 && slices.ContainsFunc(procs, func(p qemu.Process) bool { return p.UID == caller }):
		return libvirt.Dialer{URI: libvirt.Session}
	}
	return libvirt.Dialer{URI: named}
}

// identify asks libvirt for the domain, and which process is its QEMU, and holds that.
func (d *Domain) identify(ctx context.Context) (err error) {
	g := d.found
	vm := g.target.VM
	if d.dom, err = d.LookupByName(ctx, vm); errors.Is(err, libvirt.ErrNoDomain) {
		return fmt.Errorf(
			"%w (another libvirt manages it: name that with --libvirt, a user's own by qemu:///session?socket=PATH)",
			err)
	} else if err != nil {
		return err
	}
	if d.dom.ID < 0 {
		return fmt.Errorf("%w: libvirt's domain %s is off (virsh start %[2]s)", qemu.ErrNotFound, vm)
	}
	def, err := d.definition(ctx)
	if err != nil {
		return err
	}
	procs, err := g.domainOf(def.Name, def.UUID.String(), def.RunAs)
	if err != nil {
		return err
	}
	if err := onlyOne(procs, d.dom); err != nil {
		return err
	}
	g.process = procs[0]
	if strings.HasSuffix(d.URI(), "/session") {
		d.user = g.process.UID
	}
	g.hold, err = g.process.Hold()
	return err
}

// onlyOne returns an error unless one process is the domain's.
func onlyOne(procs []qemu.Process, dom libvirt.Domain) error {
	switch len(procs) {
	case 1:
		return nil
	case 0:
		return fmt.Errorf("%w: no process that is seen from here is libvirt's domain %s (UUID %s)",
			qemu.ErrNotFound, dom.Name, dom.UUID)
	}
	return fmt.Errorf("%w: processes %d and %d both say that they are libvirt's domain %s (name it with --pid)",
		qemu.ErrAmbiguous, procs[0].PID, procs[1].PID, dom.Name)
}

// lockPatience is how long a lock may take before its wait is reported.
const lockPatience = 300 * time.Millisecond

// takeLock waits until no other vmnet works on the guest. libvirt has no lock for others, so it is
// flock(2) on the directory that libvirt keeps for the running domain alone, which others may not
// open.
func (d *Domain) takeLock(ctx context.Context, progress func(string, ...any)) error {
	f, err := holders.OpenLock(d.found.process)
	if err != nil {
		return fmt.Errorf("lock guest %s: %w", d.dom.Name, err)
	}
	d.lock = f
	for start, reported := time.Now(), false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if !reported && time.Since(start) > lockPatience {
			reported = true
			progress("waiting for another vmnet that works on %s", d.dom.Name)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock guest %s: another vmnet works on it: %w", d.dom.Name, context.Cause(ctx))
		case <-time.After(inventory.PollEvery):
		}
	}
}

// Close closes the connection and gives up the lock.
func (d *Domain) Close() error {
	err := d.Conn.Close()
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// definition reads what libvirt knows of the running domain.
func (d *Domain) definition(ctx context.Context) (*domainxml.Definition, error) {
	text, err := d.XML(ctx, d.dom, 0)
	if err != nil {
		return nil, err
	}
	return domainxml.Parse(text)
}

// CPUs returns the number of the guest's virtual CPUs.
func (d *Domain) CPUs(ctx context.Context) (int, error) {
	def, err := d.definition(ctx)
	if err != nil {
		return 0, err
	}
	return def.CPUs, nil
}

// Has reports whether libvirt's definition of the running domain has the NIC.
func (d *Domain) Has(ctx context.Context, nicID string) (bool, error) {
	def, err := d.definition(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(def.Interfaces, func(i domainxml.Interface) bool {
		return i.Alias == nic.LibvirtAlias(nicID)
	}), nil
}
