// Package skbdrops counts the frames that the kernel drops, by link, reason and place: what its
// tracepoint skb:kfree_skb says. A BPF program counts them. It goes with this process, however that
// ends. Frames that reach their end are no drops, nor are those that a program of userspace drops.
package skbdrops

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"vmnet/internal/kernel/clsact"
	"vmnet/internal/kernel/netns"
)

// MaxLinks is how many links a Watch counts for.
const MaxLinks = 64

// maxKinds bounds the kinds of drops that are counted.
const maxKinds = 1024

// ErrNotSupported matches the error of Open if the kernel does not say why it drops a frame. Linux
// does since 5.17, with type information (BTF).
var ErrNotSupported = errors.New("the kernel does not say why it drops frames")

// A Drop is a kind of drops, and how many there were.
type Drop struct {
	Link     int    // index
	Protocol uint16 // EtherType
	Reason   string // as enum skb_drop_reason names it, without its prefix; a number if it does not
	Place    string // the kernel's function; empty if this process may not know
	Count    uint64
}

// A Watch counts until it is closed.
type Watch struct {
	offsets
	counts  *ebpf.Map
	program *ebpf.Program
	link    link.Link
	places  map[uint64]string // names of functions, by addresses in them
}

// key is that of the map of counts.
type key struct {
	Link     uint32
	Reason   uint32
	Place    uint64
	Protocol uint64
}

// Open begins to count what is dropped at links of ns. It needs CAP_BPF and CAP_PERFMON.
func Open(ns *netns.NS, links []int) (_ *Watch, err error) {
	if len(links) > MaxLinks {
		return nil, fmt.Errorf("watch drops of %d links: want at most %d", len(links), MaxLinks)
	}
	inode, err := ns.Inode()
	if err != nil {
		return nil, err
	}
	w := &Watch{places: map[uint64]string{}}
	if w.offsets, err = kernelOffsets(); err != nil {
		return nil, fmt.Errorf("watch drops: %w: %w", ErrNotSupported, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("watch drops: %w", err), w.Close())
		}
	}()
	err = clsact.WithMemlock(func() (err error) {
		w.counts, err = ebpf.NewMap(&ebpf.MapSpec{
			Name: programName, Type: ebpf.Hash, KeySize: keySize, ValueSize: 8, MaxEntries: maxKinds,
		})
		if err != nil {
			return err
		}
		text := w.offsets.program(uint32(inode), links)
		if err := text.AssociateMap(programName, w.counts); err != nil {
			return err
		}
		w.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: programName, Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: tracepoint,
			License: license, Instructions: text,
		})
		return err
	})
	if errors.Is(err, syscall.EPERM) { // where the library adds advice about locked memory
		err = fmt.Errorf("%w (needs CAP_BPF and CAP_PERFMON)", syscall.EPERM)
	}
	if err != nil {
		return nil, err
	}
	w.link, err = link.AttachTracing(link.TracingOptions{Program: w.program, AttachType: ebpf.AttachTraceRawTp})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Close ends the counting.
func (w *Watch) Close() (err error) {
	if w.link != nil {
		err = w.link.Close()
	}
	return errors.Join(err, w.program.Close(), w.counts.Close())
}

// Drops returns what was dropped since Open, most first.
func (w *Watch) Drops() (drops []Drop, _ error) {
	var k key
	var n uint64
	all, unnamed := map[key]uint64{}, map[uint64]string{}
	each := w.counts.Iterate()
	for each.Next(&k, &n) {
		all[k] = n
		if _, named := w.places[k.Place]; !named {
			unnamed[k.Place] = ""
		}
	}
	if err := each.Err(); err != nil {
		return nil, fmt.Errorf("read drops: %w", err)
	}
	name(unnamed)
	maps.Copy(w.places, unnamed)
	for k, n := range all {
		drops = append(drops, Drop{
			Link: int(k.Link), Protocol: uint16(k.Protocol), Reason: w.reason(k.Reason), Place: w.places[k.Place],
			Count: n,
		})
	}
	slices.SortFunc(drops, func(a, b Drop) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Link, b.Link), cmp.Compare(a.Reason, b.Reason),
			cmp.Compare(a.Place, b.Place), cmp.Compare(a.Protocol, b.Protocol))
	})
	return drops, nil
}
