package sdnotify

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstStored is the number of the first file that a service manager passes (SD_LISTEN_FDS_START in
// sd-daemon.h).
const firstStored = 3

// Stored returns the files that the manager has kept, by their names, and takes the variables that
// tell of them out of the environment (sd_listen_fds(3)). Call it once, before other files are
// opened. The caller owns the files. Of several with one name, it returns the first one, which is
// the newest: systemd prepends to its list (service_add_fd_store in src/core/service.c).
func Stored() map[string]*os.File {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	count, countErr := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // of a valid name, it does not fail
	}
	if err != nil || countErr != nil || pid != os.Getpid() || count != len(names) {
		return nil
	}
	files := map[string]*os.File{}
	for i, name := range names {
		fd := firstStored + i
		// A file that is not open is not for this process: the variables were made by somebody
		// else.
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		unix.CloseOnExec(fd)
		if f := os.NewFile(uintptr(fd), name); files[name] == nil {
			files[name] = f
		} else {
			_ = f.Close()
		}
	}
	return files
}
