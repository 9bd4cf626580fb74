package ratelimit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These are two of bpf(2)'s commands, with attributes as far as they are used
// (include/uapi/linux/bpf.h). A library would be larger than the programs that may load the
// program, of which one is setuid.
type mapAttr struct {
	kind, keySize, valueSize, entries uint32
	flags, innerFD, node              uint32
	name                              [16]byte
}

type programAttr struct {
	kind, count         uint32
	instructions        uint64
	license             uint64
	logLevel, logSize   uint32
	log                 uint64
	kernelVersion       uint32
	flags               uint32
	name                [16]byte
	device, attachType  uint32
	btfFD, funcInfoSize uint32
}

// license lets the program call what it calls: bpf_ktime_get_ns, open to all since Linux 5.8.
const license = "Apache-2.0\x00"

var programName = [16]byte{'v', 'm', 'n', 'e', 't', '_', 'r', 'a', 't', 'e'}

func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// load loads a program with a map of its own, and returns its fd.
func load(p program) (fd int, err error) {
	fd, err = tryLoad(p)
	if errors.Is(err, unix.EPERM) { // kernels before Linux 5.11 charge both to the locked memory
		var old unix.Rlimit
		all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old) != nil || unix.Setrlimit(unix.RLIMIT_MEMLOCK, &all) != nil {
			return fd, err
		}
		fd, err = tryLoad(p)
		err = errors.Join(err, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old))
	}
	return fd, err
}

func tryLoad(p program) (int, error) {
	m := mapAttr{kind: unix.BPF_MAP_TYPE_ARRAY, keySize: 4, valueSize: stateSize, entries: 1, name: programName}
	state, err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&m), unsafe.Sizeof(m))
	if err != nil {
		return -1, fmt.Errorf("make a BPF map: %w", err)
	}
	defer unix.Close(state) // the program has it
	text, lic := p.bytes(state), []byte(license)
	a := programAttr{
		kind: unix.BPF_PROG_TYPE_SCHED_CLS, count: uint32(len(p)), instructions: address(text),
		license: address(lic), name: programName,
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&a), unsafe.Sizeof(a))
	runtime.KeepAlive(text)
	runtime.KeepAlive(lic)
	if err != nil {
		return -1, fmt.Errorf("load a BPF program: %w", err)
	}
	unix.CloseOnExec(fd) // the kernel has done so
	return fd, nil
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// An instruction is struct bpf_insn, of which the second half of a 64-bit constant is one more.
type instruction struct {
	code     uint8
	dst, src uint8
	offset   int16
	imm      int32
}

// A program is one without a map: loading fills that in.
type program []instruction

// bytes returns the program as the kernel reads it, with that fd of its map.
func (p program) bytes(state int) []byte {
	var b []byte
	for _, i := range p {
		if i.code == loadImm64 && i.src == unix.BPF_PSEUDO_MAP_VALUE {
			i.imm = int32(state)
		}
		regs := i.dst | i.src<<4
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big endian: the bit fields are the other way round
			regs = i.dst<<4 | i.src
		}
		b = append(b, i.code, regs)
		b = binary.NativeEndian.AppendUint16(b, uint16(i.offset))
		b = binary.NativeEndian.AppendUint32(b, uint32(i.imm))
	}
	return b
}
