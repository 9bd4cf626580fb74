package netns

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// DetachedMount makes a new mount of that kind of file system without attaching it to a path, and
// returns its root, an fd that the caller owns. A sysfs shows the netns of the calling thread.
func DetachedMount(kind string) (int, error) {
	fsfd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return -1, fmt.Errorf("fsopen %s: %w (needs Linux 5.2)", kind, err)
	}
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w (needs CAP_SYS_ADMIN)", kind, err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("create %s: %w (needs CAP_SYS_ADMIN)", kind, err)
	}
	root, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w (needs CAP_SYS_ADMIN)", kind, err)
	}
	return root, nil
}

// ReadSys reads at most 4096 bytes of a file in the sysfs of the namespace, such as
// "class/net/br0/address". It needs CAP_SYS_ADMIN.
func (ns *NS) ReadSys(path string) (text string, err error) {
	err = ns.Do(func() error {
		sys, err := DetachedMount("sysfs")
		if err != nil {
			return err
		}
		defer unix.Close(sys)
		fd, err := unix.Openat(sys, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open sysfs %s: %w", path, err)
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, 4096))
		text = string(b)
		return err
	})
	return text, err
}
