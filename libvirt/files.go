package libvirt

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
)

// descriptors are plain numbers, since an [os.File] would change what the copies share: O_NONBLOCK.
type descriptors []int

// duplicate makes copies that stay open when the caller closes its files.
func duplicate(files []*os.File) (fds descriptors, err error) {
	for _, f := range files {
		fd, err := fdpass.DuplicateFD(f)
		if err != nil {
			fds.close()
			return nil, fmt.Errorf("copy the file to pass: %w", err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func (fds descriptors) close() {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// socket is a source. read(2) receives no files, so files arrive only with their own bytes, through
// recvmsg(2).
type socket struct{ *net.UnixConn }

func (s socket) readFile() (*os.File, error) {
	var dummy [1]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := s.ReadMsgUnix(dummy[:], oob) // with MSG_CMSG_CLOEXEC
	if err != nil {
		return nil, err
	}
	files, err := fdpass.FilesIn(oob[:oobn])
	switch {
	case err == nil && len(files) == 1 && n == 1:
		return files[0], nil
	case err == nil && len(files) == 0 && n == 0:
		return nil, io.ErrUnexpectedEOF
	}
	fdpass.CloseAll(files)
	return nil, errors.Join(
		fmt.Errorf("%w: %d files with %d bytes where one of each is due", ErrProtocol, len(files), n), err)
}
