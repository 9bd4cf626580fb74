package hook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/libvirthook/declared"
	"vmnet/internal/rundir"
	"vmnet/libvirt/domainxml"
)

// arrivals is a directory with a file for each guest of which libvirt has said that it arrives from
// another host. libvirt says that once, at the operation migrate, and makes the guest's QEMU only
// after that. The records of the guest's NICs say it as soon as there are NICs.
type arrivals string

// ofSystem has the arrivals of the machine's libvirt, in root's directory.
const ofSystem arrivals = rundir.System + "/arriving"

// arrivingFor bounds the time between the operations migrate and started, in which other hooks may
// run. What is older was given up.
const arrivingFor = 10 * time.Minute

func (a arrivals) file(uuid domainxml.UUID) string { return filepath.Join(string(a), uuid.String()) }

// expect notes that the guest arrives.
func (a arrivals) expect(uuid domainxml.UUID) error {
	if _, err := rundir.Make([]string{filepath.Dir(string(a))}, os.Geteuid()); err != nil {
		return err
	}
	if err := rundir.Mkdir(string(a), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.WriteFile(a.file(uuid), []byte(strconv.FormatInt(inventory.SinceBoot(), 10)), 0o600)
}

// has reports whether the guest arrives. None arrives at the libvirt of a user who is not root.
func (a arrivals) has(uuid domainxml.UUID) (bool, error) {
	text, err := os.ReadFile(a.file(uuid))
	if isNone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	since, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return false, fmt.Errorf("%s: %w", a.file(uuid), err)
	}
	age := inventory.SinceBoot() - since
	return age >= 0 && age < int64(arrivingFor.Seconds()), nil
}

// forget is for a guest whose NICs' records say it by now, or that has ended.
func (a arrivals) forget(uuid domainxml.UUID) error {
	err := os.Remove(a.file(uuid))
	if isNone(err) {
		return nil
	}
	return err
}

// isNone reports whether there is no file, or none that the caller may read.
func isNone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
}

// expect is for a guest that is about to arrive.
func (w *work) expect(context.Context) error {
	nics, err := w.nics()
	if err != nil || !slices.ContainsFunc(nics, waits) || os.Geteuid() != 0 {
		return err
	}
	w.Awaits = true
	return w.arrivals.expect(w.def.UUID)
}

// waits reports whether the NIC stays down until its guest has arrived.
func waits(n declared.NIC) bool { return n.Made && !n.Absent() }

// waiting returns the declared NICs of a starting guest. If it arrives from another host, those of
// them that wait for that are to be prepared.
func (w *work) waiting() ([]declared.NIC, error) {
	nics, err := w.nics()
	if err != nil || !slices.ContainsFunc(nics, waits) {
		return nics, err
	}
	arrives, err := w.arrivals.has(w.def.UUID)
	for i, n := range nics {
		nics[i].Spec.Prepared = arrives && waits(n)
	}
	return nics, err
}

// arrive finds out whether NICs of the guest, whose QEMU runs, wait for it. Their records say so
// from here on.
func (w *work) arrive(ctx context.Context) (err error) {
	if w.Awaits, err = w.m.Awaits(ctx, w.Guest); err != nil {
		return err
	}
	return w.arrivals.forget(w.def.UUID)
}
