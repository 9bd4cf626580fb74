package procfd

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// RealUID is the user who runs a process (proc_pid_status(5)). That /proc/PID belongs to somebody
// says less: it belongs to root where the process may not be looked into.
func RealUID(pid int) (int, error) {
	ids, err := UserIDs(pid)
	return ids[0], err
}

// nobodys is the user of a process that acts for several, such as a set-user-ID program.
const nobodys = -1

// one is the user of all four ids.
func one(ids [4]int) int {
	for _, id := range ids {
		if id != ids[0] {
			return nobodys
		}
	}
	return ids[0]
}

// UserIDs are the real, the effective, the saved and the file system's uid of a process
// (proc_pid_status(5), "Uid:"); the real one is -1 beside an error.
func UserIDs(pid int) (ids [4]int, err error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return [4]int{nobodys}, err
	}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) != len(ids) {
			break
		}
		for i, f := range fields {
			if ids[i], err = strconv.Atoi(f); err != nil {
				return [4]int{nobodys}, fmt.Errorf("%s: %w", path, err)
			}
		}
		return ids, nil
	}
	return [4]int{nobodys}, fmt.Errorf("%s does not tell the four user ids", path)
}
