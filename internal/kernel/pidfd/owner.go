package pidfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/kernel/procfd"
)

// ErrDoubtful is for a process that may be somebody else's than it looks.
var ErrDoubtful = errors.New("not believed to be anybody's")

// Owner returns the user whose process this is, for whoever decides by what the process
// says of itself, such as its command line or its open files. Whoever starts a set-user-ID
// program chooses both, and the program then runs with its owner's ids: wholly if it calls
// setuid(2), else with the real id of its starter. So all four user ids must be equal, and
// must have been when the program was executed. The owner of /proc/PID is the effective id
// alone, or root.
//
// An error Is [ErrDoubtful], or the process has ended. Where the caller may not read how
// the program was executed (ptrace(2), PTRACE_MODE_READ_FSCREDS), the ids must do.
func Owner(pid int) (uid int, err error) {
	ids, err := procfd.UserIDs(pid)
	if err != nil {
		return -1, err
	}
	for _, id := range ids[1:] {
		if id != ids[0] {
			return -1, fmt.Errorf("process %d: %w: it runs with the real uid %d and the effective uid %d",
				pid, ErrDoubtful, ids[0], ids[1])
		}
	}
	if started, ran, ok := executedAs(pid); ok && started != ran {
		return -1, fmt.Errorf("process %d: %w: uid %d has started its set-user-ID program of uid %d",
			pid, ErrDoubtful, started, ran)
	}
	return ids[0], nil
}

// Entries of the auxiliary vector (getauxval(3), linux/auxvec.h).
const (
	atUID  = 11
	atEUID = 12
)

// maxAuxv is more than AT_VECTOR_SIZE entries of any architecture, in bytes.
const maxAuxv = 4096

// executedAs returns the real and the effective uid that the process had when it executed
// its program, from its auxiliary vector. They are ids of its own user namespace. A process
// can change that vector (PR_SET_MM_MAP), but not before it executes a program whose
// owner's ids it would get.
func executedAs(pid int) (started, ran uint64, ok bool) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return 0, 0, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxAuxv))
	if err != nil {
		return 0, 0, false
	}
	return idsIn(data)
}

func idsIn(auxv []byte) (started, ran uint64, ok bool) {
	for _, word := range []int{8, 4} { // that of a 32-bit program has words of 4 bytes
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

// Started is when a process was started, in clock ticks since the machine's start
// (proc_pid_stat(5), field 22). With its number it names the process for as long as the
// machine runs: a number is not used again within a tick.
func Started(pid int) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	name := strings.LastIndexByte(string(text), ')') // the program's name may contain anything
	fields := strings.Fields(string(text[name+1:]))
	const startTime = 22 - 3 // the first of fields is field 3
	if len(fields) <= startTime {
		return 0, fmt.Errorf("%s has no start time", path)
	}
	return strconv.ParseUint(fields[startTime], 10, 64)
}
