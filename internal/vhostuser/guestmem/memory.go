// Package guestmem maps the memory that a virtual machine shares with this process, and translates
// the machine's addresses.
//
// The machine, and the process that shares the memory, may write to it at any time and may shrink
// the file behind it. So an access may see any value, and may raise SIGBUS. A goroutine that uses
// the memory sets debug.SetPanicOnFault and passes what it recovers to [Memory.Fault].
package guestmem

import (
	"fmt"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Region is a part of the machine's memory, as a vhost-user frontend describes it
// (docs/interop/vhost-user.rst of QEMU, "Memory region description"). Addresses and lengths are in
// bytes.
type Region struct {
	Guest  uint64 // physical address in the machine
	Size   uint64
	User   uint64 // address in the frontend's process
	Offset uint64 // of the region in the file
}

// An Area is a mapped Region.
type Area struct {
	Region
	mapped []byte         // begins at a page
	base   unsafe.Pointer // the region's first byte
}

// maxRegion limits the size of a region, so that regions cannot use up this process's address
// space: a sparse file costs its owner nothing.
const maxRegion = 4 << 40

// Map maps a region of the file, which it does not keep open. It accepts only files in memory: on
// tmpfs, which includes memfd_create(2), or hugetlbfs. A file of FUSE could keep an access waiting
// for ever. The caller unmaps the area.
func Map(r Region, fd int) (*Area, error) {
	if err := r.check(fd); err != nil {
		return nil, fmt.Errorf("region of %d bytes at %#x: %w", r.Size, r.Guest, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	page := uint64(max(int64(unix.Getpagesize()), int64(st.Blksize))) // of hugetlbfs, its page size
	if bits.OnesCount64(page) != 1 {
		return nil, fmt.Errorf("region at %#x: page size %d", r.Guest, page)
	}
	start := r.Offset &^ (page - 1)
	end := (r.Offset + r.Size + page - 1) &^ (page - 1)
	mapped, err := unix.Mmap(fd, int64(start), int(end-start), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap of %d bytes at %#x: %w", r.Size, r.Guest, err)
	}
	_ = unix.Madvise(mapped, unix.MADV_DONTDUMP)
	return Of(r, mapped, int(r.Offset-start)), nil
}

// Of makes an area of memory that is mapped already. The region begins skip bytes after the start
// of mapped, which begins at a page, and is not longer than the rest.
func Of(r Region, mapped []byte, skip int) *Area {
	return &Area{Region: r, mapped: mapped, base: unsafe.Pointer(&mapped[skip])}
}

// check returns an error unless the file may be mapped and has the whole region.
func (r Region) check(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("fstatfs: %w", err)
	}
	switch uint32(fs.Type) {
	case unix.TMPFS_MAGIC, unix.HUGETLBFS_MAGIC:
	default:
		return fmt.Errorf("a file of file system type %#x: want a memfd, or a file of tmpfs or hugetlbfs", fs.Type)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("not a regular file (mode %#o)", st.Mode)
	case r.Size == 0 || r.Size > maxRegion:
		return fmt.Errorf("want 1 to %d bytes", uint64(maxRegion))
	case r.Guest+r.Size < r.Guest || r.User+r.Size < r.User:
		return fmt.Errorf("its addresses %#x and %#x are too high for its size", r.Guest, r.User)
	case r.Offset > uint64(st.Size) || r.Size > uint64(st.Size)-r.Offset:
		return fmt.Errorf("the file has %d bytes: want %d at offset %d", st.Size, r.Size, r.Offset)
	}
	return nil
}

// Unmap unmaps the area, which must not be in use.
func (a *Area) Unmap() error { return unix.Munmap(a.mapped) }

// MaxAreas is the most areas of a Memory: what vhost-user calls memory slots.
const MaxAreas = 32

// A Memory is a machine's memory. It is immutable: With, Without and Logged return another one,
// which shares the areas.
type Memory struct {
	areas []*Area
	log   *Log // nil for none
}

// New makes a memory of areas. An address that several have is in the first one.
func New(areas ...*Area) *Memory { return &Memory{areas: areas} }

// Len returns the number of areas.
func (m *Memory) Len() int { return len(m.areas) }

// With returns a memory that also has the area.
func (m *Memory) With(a *Area) *Memory {
	return &Memory{append(m.areas[:len(m.areas):len(m.areas)], a), m.log}
}

// Without returns a memory without the area of that region, and the area, which is nil if there is
// none. The region's offset does not count.
func (m *Memory) Without(r Region) (*Memory, *Area) {
	for i, a := range m.areas {
		if a.Guest == r.Guest && a.Size == r.Size && a.User == r.User {
			return &Memory{append(m.areas[:i:i], m.areas[i+1:]...), m.log}, a
		}
	}
	return m, nil
}

// Unmap unmaps all areas. The memory must not be in use.
func (m *Memory) Unmap() {
	for _, a := range m.areas {
		_ = a.Unmap() // of a mapping that exists
	}
	m.areas = nil
}

// At returns the memory at a physical address: n bytes, or fewer if the area ends before. It
// returns nil for an address without memory.
func (m *Memory) At(addr uint64, n uint32) []byte {
	for _, a := range m.areas {
		if off := addr - a.Guest; off < a.Size {
			return unsafe.Slice((*byte)(unsafe.Add(a.base, off)), min(uint64(n), a.Size-off))
		}
	}
	return nil
}

// AtUser returns n bytes at an address of the frontend's process. They must be in one area, and
// their address here must be a multiple of align, a power of two.
func (m *Memory) AtUser(addr, n, align uint64) (unsafe.Pointer, error) {
	for _, a := range m.areas {
		if off := addr - a.User; off < a.Size && n <= a.Size-off {
			p := unsafe.Add(a.base, off)
			if uintptr(p)&uintptr(align-1) != 0 {
				return nil, fmt.Errorf("address %#x: want a multiple of %d", addr, align)
			}
			return p, nil
		}
	}
	return nil, fmt.Errorf("address %#x: %d bytes from there are not in one region of memory", addr, n)
}

// Fault returns an error for a recovered panic if it is a fault of an access to this memory or its
// log: the file has shrunk, or the host has no page left for it. It panics again for anything else.
func (m *Memory) Fault(recovered any) error {
	if err := m.faultOf(recovered); err != nil {
		return err
	}
	panic(recovered)
}

// Has reports whether a recovered panic is a fault of an access to this memory.
func (m *Memory) Has(recovered any) bool { return m.faultOf(recovered) != nil }

func (m *Memory) faultOf(recovered any) error {
	fault, ok := recovered.(interface {
		error
		Addr() uintptr
	})
	if ok {
		for _, a := range m.areas {
			if a.has(fault.Addr()) {
				return fmt.Errorf("its memory at %#x is gone: %w", a.Guest, fault)
			}
		}
		if m.log != nil && m.log.area.has(fault.Addr()) {
			return fmt.Errorf("its log of written pages is gone: %w", fault)
		}
	}
	return nil
}

// has reports whether an address of this process is in the area's mapping.
func (a *Area) has(addr uintptr) bool {
	return addr-uintptr(unsafe.Pointer(&a.mapped[0])) < uintptr(len(a.mapped))
}
