package fastpath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
)

// What a table has room for.
const (
	MaxAddresses = 4096
	MaxTargets   = 64
)

// Prepare reads what OpenTable needs of this machine. Call it before the process gives up access to
// files.
func Prepare() { _, _ = ebpf.PossibleCPU() }

// A Table is the fast path of one port: the addresses of stations behind it, and those that its
// frames are forwarded to. A frame is forwarded if both of its addresses are in the table. Its
// methods are for one goroutine at a time.
type Table struct {
	addresses, targets, counters *ebpf.Map
	place, link                  *os.File
}

// OpenTable makes a table of copies of the files that Open has returned, and empties it. The caller
// keeps the files. They may come from a process that is not trusted: OpenTable checks what the
// kernel would otherwise write beyond.
func OpenTable(files []*os.File) (*Table, error) {
	if len(files) != FileCount {
		return nil, fmt.Errorf("fast path: %d files: want %d", len(files), FileCount)
	}
	t, err := openTable(files)
	if err == nil {
		err = t.Clear()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("fast path: %w", err), t.Close())
	}
	return t, nil
}

func openTable(files []*os.File) (t *Table, err error) {
	t = &Table{}
	spec, err := object()
	if err != nil {
		return t, err
	}
	if t.addresses, err = mapOf(files[0], spec.Maps[fastpathMapAddresses]); err != nil {
		return t, err
	}
	if t.targets, err = mapOf(files[1], spec.Maps[fastpathMapTargets]); err != nil {
		return t, err
	}
	if t.counters, err = mapOf(files[2], spec.Maps[fastpathMapCounters]); err != nil {
		return t, err
	}
	if t.place, err = fdpass.Duplicate(files[3]); err != nil {
		return t, err
	}
	t.link, err = fdpass.Duplicate(files[4])
	return t, err
}

// mapOf opens a copy of a file as a map, which must have the form that the spec says.
func mapOf(f *os.File, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	fd, err := fdpass.DuplicateFD(f)
	if err != nil {
		return nil, err
	}
	m, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		return nil, err
	}
	if m.Type() != spec.Type || m.KeySize() != spec.KeySize || m.ValueSize() != max(spec.ValueSize, 4) ||
		m.MaxEntries() != spec.MaxEntries {
		return nil, errors.Join(fmt.Errorf("the map is not that of %s", spec.Name), m.Close())
	}
	return m, nil
}

// Close ends the fast path, unless others have its files.
func (t *Table) Close() error {
	var errs []error
	for _, m := range []*ebpf.Map{t.addresses, t.targets, t.counters} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	for _, f := range []*os.File{t.place, t.link} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Clear removes all addresses, also those that another switch has left.
func (t *Table) Clear() error {
	var key fastpathKey
	for range MaxAddresses {
		err := t.addresses.NextKey(nil, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil {
			err = t.addresses.Delete(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A Target is where the frames for an address are forwarded.
type Target struct {
	Number int // of SetTarget
	// MTU is in bytes; longer frames come to the switch, and so do super-frames whose segments are
	// longer. Those of a tunnel in UDP may be longer by the inner headers, which nobody reads. The
	// kernel's bridge forwards super-frames of any length (is_skb_forwardable in net/core/dev.c).
	MTU      int
	Untagged bool // frames with a tag come to the switch
}

// Place returns a copy of the file that says where the port is, for SetTarget of another one's
// table.
func (t *Table) Place() (*os.File, error) { return fdpass.Duplicate(t.place) }

// SetTarget makes the port of that place the target with that number, below MaxTargets. The frames
// for it are forwarded if it is in the netns of the table's own port. It waits until no program
// uses the former target, which takes some milliseconds.
func (t *Table) SetTarget(number int, place *os.File) error {
	return fdpass.Control(place, func(fd int) error { return t.targets.Put(uint32(number), uint32(fd)) })
}

// PutSource adds the address of a station behind the port, which is Ethernet's in 6 bytes.
func (t *Table) PutSource(mac [6]byte) error { return t.put(mac, 0, fastpathAddress{}) }

// PutTarget adds an address that the port's frames are forwarded to.
func (t *Table) PutTarget(mac [6]byte, to Target) error {
	a := fastpathAddress{Target: uint32(to.Number), Mtu: uint32(to.MTU)}
	if to.Untagged {
		a.Untagged = 1
	}
	return t.put(mac, 1, a)
}

func (t *Table) put(mac [6]byte, target uint16, a fastpathAddress) error {
	return t.addresses.Put(fastpathKey{Mac: mac, IsTarget: target}, a)
}

// RemoveSource and RemoveTarget remove an address, if the table has it. When they return, the
// programs that begin after that do not find it.
func (t *Table) RemoveSource(mac [6]byte) error { return t.remove(mac, 0) }

// RemoveTarget is described with RemoveSource.
func (t *Table) RemoveTarget(mac [6]byte) error { return t.remove(mac, 1) }

func (t *Table) remove(mac [6]byte, target uint16) error {
	err := t.addresses.Delete(fastpathKey{Mac: mac, IsTarget: target})
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	return err
}

// SourceSeen and TargetSeen report whether a frame from or for the address was forwarded since the
// last call, or since the address was added.
func (t *Table) SourceSeen(mac [6]byte) (bool, error) { return t.seen(mac, 0) }

// TargetSeen is described with SourceSeen.
func (t *Table) TargetSeen(mac [6]byte) (bool, error) { return t.seen(mac, 1) }

func (t *Table) seen(mac [6]byte, target uint16) (bool, error) {
	var a fastpathAddress
	key := fastpathKey{Mac: mac, IsTarget: target}
	if err := t.addresses.Lookup(key, &a); err != nil || a.Seen == 0 {
		return false, err
	}
	a.Seen = 0
	return true, t.addresses.Update(key, a, ebpf.UpdateExist)
}

// Count returns the number of frames, and their bytes, that were forwarded to the target with that
// number since the programs were loaded.
func (t *Table) Count(number int) (frames, bytes uint64, err error) {
	var each []fastpathCounter
	if err := t.counters.Lookup(uint32(number), &each); err != nil {
		return 0, 0, err
	}
	for _, c := range each {
		frames, bytes = frames+c.Frames, bytes+c.Bytes
	}
	return frames, bytes, nil
}

// NetnsCookie identifies the network namespace of a socket (SO_NETNS_COOKIE, Linux 5.14): devices
// have their index in one.
func NetnsCookie(socket int) (uint64, error) {
	return unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
