package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// domain is a guest that libvirt manages. Its NICs that were handed over by name are libvirt's to
// plug and unplug.
type domain struct {
	*libvirt.Conn
	m     *Manager
	dom   libvirt.Domain
	guest *guest
	lock  *os.File // nil where it is only read
	user  int      // whose own libvirt this is; 0 for the machine's

	xml            string      // the NIC that is about to be plugged
	declare, store []step.Step // what makes it come back
}

// domainOf returns the processes of which one is the target's, if that is a guest of libvirt's:
// they say so themselves. There is none for other guests.
func domainOf(t nic.Target) ([]qemu.Process, error) {
	if t.QMP != "" {
		return nil, nil
	}
	if t.PID != 0 {
		proc, err := qemu.ByPID(t.PID)
		if err != nil || !proc.Libvirt {
			return nil, err
		}
		return []qemu.Process{proc}, nil
	}
	all, err := qemu.OfLibvirt(t.VM)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	if proc, err := qemu.Find(t.VM); err == nil && !proc.Libvirt { // the caller's own comes first
		return nil, nil
	}
	return all, nil
}

// managed tells whether libvirt manages the target.
func managed(t nic.Target) (bool, error) {
	all, err := domainOf(t)
	return len(all) > 0, err
}

// openDomain finds the target in libvirt and waits for its lock; nil where libvirt does not manage
// it.
func (m *Manager) openDomain(ctx context.Context, t nic.Target) (*domain, error) {
	d, err := m.findDomain(ctx, t, false)
	if d == nil || err != nil {
		return nil, err
	}
	if err := d.takeLock(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// findDomain connects to the libvirt that manages the target, and has it vouch for the process:
// anybody may write anything on a command line, but libvirt knows which UUID runs under that name.
func (m *Manager) findDomain(ctx context.Context, t nic.Target, readOnly bool) (*domain, error) {
	procs, err := domainOf(t)
	if err != nil || len(procs) == 0 {
		return nil, err
	}
	conn, err := m.dialLibvirt(ctx, procs, readOnly)
	if err != nil {
		return nil, fmt.Errorf("guest %s is %w: %w", t.VM, qemu.ErrLibvirt, err)
	}
	d := &domain{Conn: conn, m: m, guest: &guest{}}
	if err := d.identify(ctx, t); err != nil {
		return nil, errors.Join(fmt.Errorf("guest %s: %w", t.VM, err), d.Close())
	}
	return d, nil
}

// dialLibvirt connects to the libvirt that is named, else to the caller's own for the caller's own
// guest, else to the machine's.
func (m *Manager) dialLibvirt(ctx context.Context, procs []qemu.Process, readOnly bool) (*libvirt.Conn, error) {
	own := func(p qemu.Process) bool { return p.UID == os.Geteuid() }
	dialer := libvirt.Dialer{URI: m.Libvirt, ReadOnly: readOnly}
	switch {
	case filepath.IsAbs(m.Libvirt):
		dialer.URI, dialer.Path = "", m.Libvirt
	case m.Libvirt == "" && os.Geteuid() != 0 && slices.ContainsFunc(procs, own):
		dialer.URI = libvirt.Session
	}
	return dialer.Dial(ctx)
}

// identify asks libvirt for the domain, and which process is its QEMU.
func (d *domain) identify(ctx context.Context, t nic.Target) (err error) {
	if d.dom, err = d.LookupByName(ctx, t.VM); errors.Is(err, libvirt.ErrNoDomain) {
		return fmt.Errorf("%w (another libvirt manages it: name that with --libvirt, a user's own by qemu:///session?socket=PATH)", err)
	} else if err != nil {
		return err
	}
	if d.dom.ID < 0 {
		return fmt.Errorf("%w: libvirt's domain %s is off (virsh start %[2]s)", qemu.ErrNotFound, t.VM)
	}
	def, err := d.definition(ctx)
	if err != nil {
		return err
	}
	procs, err := qemu.OfDomain(def.Name, def.UUID.String(), def.RunAs)
	if err != nil {
		return err
	}
	if t.PID != 0 {
		procs = slices.DeleteFunc(procs, func(p qemu.Process) bool { return p.PID != t.PID })
	}
	switch len(procs) {
	case 1:
		d.guest.Process = procs[0]
		if strings.HasSuffix(d.URI(), "/session") {
			d.user = d.guest.UID
		}
		d.guest.hold, err = d.guest.Hold()
		return err
	case 0:
		return fmt.Errorf("%w: no process that is seen from here is libvirt's domain %s (UUID %s)", qemu.ErrNotFound, t.VM, d.dom.UUID)
	}
	return fmt.Errorf("%w: processes %d and %d both say that they are libvirt's domain %s (name it with --pid)", qemu.ErrAmbiguous, procs[0].PID, procs[1].PID, t.VM)
}

// takeLock waits until no other vmnet works on the guest. Libvirt has no lock for others, so it is
// flock(2) on the folder that libvirt keeps for the running domain alone, which others may not
// open.
func (d *domain) takeLock(ctx context.Context) error {
	f, err := inventory.OpenLock(d.guest.Process)
	if err != nil {
		return fmt.Errorf("lock guest %s: %w", d.dom.Name, err)
	}
	d.lock = f
	for start, told := time.Now(), false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if !told && time.Since(start) > lockPatience {
			told = true
			d.m.progress("waiting for another vmnet that works on %s", d.dom.Name)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock guest %s: another vmnet works on it: %w", d.dom.Name, context.Cause(ctx))
		case <-time.After(inventory.PollEvery):
		}
	}
}

// openRead opens the guest of a link to look at it: no lock of libvirt's guests is taken, and
// nothing can be changed.
func (m *Manager) openRead(ctx context.Context, dev inventory.Device) (vmm, error) {
	t := nic.Target{VM: dev.Want.VM, PID: dev.VMMPID()}
	switch dev.Want.Via {
	case nic.ViaMonitor:
		return nil, fmt.Errorf("libvirt lets nobody who only looks use the monitor")
	case nic.ViaLibvirt:
		d, err := m.findDomain(ctx, t, true)
		if err == nil && d == nil {
			err = fmt.Errorf("process %d is not libvirt's any more", t.PID)
		}
		if err != nil {
			return nil, err
		}
		return d, nil
	}
	return asVMM(m.openMonitor(ctx, t))
}

// lockPatience is how long a lock may take before somebody is told.
const lockPatience = 300 * time.Millisecond

// monitor reaches the domain's QEMU by libvirt's monitor commands. It takes the domain over.
func (d *domain) monitor(ctx context.Context) (vmm, error) {
	conn, err := dialThroughLibvirt(ctx, d.Conn, d.dom)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &vm{Conn: conn, m: d.m, guest: d.guest, domain: d}, nil
}

// Close gives up the lock as well.
func (d *domain) Close() error {
	err := d.Conn.Close()
	if d.guest != nil { // of a domain that is off there is none
		err = errors.Join(err, d.guest.hold.Close())
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// definition reads what libvirt knows of the running domain.
func (d *domain) definition(ctx context.Context) (*domainxml.Definition, error) {
	text, err := d.XML(ctx, d.dom, 0)
	if err != nil {
		return nil, err
	}
	return domainxml.Parse(text)
}

func (d *domain) process() int { return d.guest.PID }

func (d *domain) alive() error { return d.guest.hold.Check() }

func (d *domain) cpus(ctx context.Context) (int, error) {
	def, err := d.definition(ctx)
	if err != nil {
		return 0, err
	}
	return def.CPUs, nil
}

func (d *domain) has(ctx context.Context, nicID string) (bool, error) {
	def, err := d.definition(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(def.Interfaces, func(i domainxml.Interface) bool { return i.Alias == nic.LibvirtAlias(nicID) }), nil
}
