package pidfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/kernel/procfd"
)

// ErrDoubtful is returned for a process that may belong to another user than it seems.
var ErrDoubtful = errors.New("its owner is doubtful")

// Owner returns the user to whom a process belongs. A caller needs it before it trusts what the
// process says about itself, such as by its command line or its open files. The user who starts a
// set-user-ID program chooses both, but the program runs with the ids of its owner: with all of
// them if it calls setuid(2), otherwise with the real id of the user. So all four user ids must be
// equal, and must have been equal when the program was executed. The owner of /proc/PID is only the
// effective id, or root. An error matches [ErrDoubtful] with errors.Is, or the process has ended.
// If the caller may not read the ids at execution (PTRACE_MODE_READ_FSCREDS in ptrace(2)), Owner
// checks only the current ones.
func Owner(pid int) (uid int, err error) {
	ids, err := procfd.UserIDs(pid)
	if err != nil {
		return -1, err
	}
	for _, id := range ids[1:] {
		if id != ids[0] {
			return -1, fmt.Errorf("process %d: %w: its real, effective, saved and file system uid are %v",
				pid, ErrDoubtful, ids)
		}
	}
	if started, ran, ok := executedAs(pid); ok && started != ran {
		return -1, fmt.Errorf("process %d: %w: uid %d has started its set-user-ID program of uid %d",
			pid, ErrDoubtful, started, ran)
	}
	return ids[0], nil
}

// Entries of the auxiliary vector (getauxval(3), include/uapi/linux/auxvec.h).
const (
	atUID  = 11
	atEUID = 12
)

// maxAuxv is in bytes, and more than the AT_VECTOR_SIZE entries of any architecture.
const maxAuxv = 4096

// executedAs returns the real and the effective uid that the process had when it executed its
// program, from its auxiliary vector. They are ids in its own user namespace. A process can change
// the vector (PR_SET_MM_MAP), but executing a set-user-ID program replaces it.
func executedAs(pid int) (started, ran uint64, ok bool) {
	data, err := procfd.ReadStart(pid, "auxv", maxAuxv)
	if err != nil {
		return 0, 0, false
	}
	return idsIn(data)
}

func idsIn(auxv []byte) (started, ran uint64, ok bool) {
	for _, word := range []int{8, 4} { // a 32-bit program's vector has words of 4 bytes
		words := wordsOf(auxv, word)
		started, okStarted := entry(words, atUID)
		ran, okRan := entry(words, atEUID)
		if okStarted && okRan {
			return started, ran, true
		}
	}
	return 0, 0, false
}

func wordsOf(data []byte, size int) (words []uint64) {
	for part := range slices.Chunk(data, size) {
		switch {
		case len(part) < size:
		case size == 4:
			words = append(words, uint64(binary.NativeEndian.Uint32(part)))
		default:
			words = append(words, binary.NativeEndian.Uint64(part))
		}
	}
	return words
}

func entry(words []uint64, key uint64) (value uint64, ok bool) {
	for i := 0; i+1 < len(words); i += 2 {
		if words[i] == key {
			return words[i+1], true
		}
	}
	return 0, false
}

// Started returns when a process was started, in clock ticks since boot (field 22 in
// proc_pid_stat(5)). Together with the PID it identifies the process until the next boot: the
// kernel does not reuse a PID within a tick.
func Started(pid int) (uint64, error) {
	text, err := procfd.Read(pid, "stat")
	if err != nil {
		return 0, err
	}
	name := strings.LastIndexByte(string(text), ')') // the program's name may contain anything
	fields := strings.Fields(string(text[name+1:]))
	const startTime = 22 - 3 // the first of fields is field 3
	if len(fields) <= startTime {
		return 0, fmt.Errorf("/proc/%d/stat has no start time", pid)
	}
	return strconv.ParseUint(fields[startTime], 10, 64)
}
