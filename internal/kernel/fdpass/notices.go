package fdpass

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Notices is a socket to which processes of this user send datagrams, as to that of sd_notify(3).
// Its name is in the abstract namespace (unix(7)), so nothing is left of it when this process is
// killed.
type Notices struct{ conn *net.UnixConn }

// ListenForNotices opens one with a name that the kernel chooses (autobind in unix(7)). It is in
// the network namespace of the calling thread.
func ListenForNotices() (*Notices, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	_, err = sockopt(conn, func(fd int) (struct{}, error) {
		return struct{}{}, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &Notices{conn}, nil
}

// Name is what NOTIFY_SOCKET has to be for a program that sends notices here.
func (n *Notices) Name() string { return n.conn.LocalAddr().String() }

// Next waits for a datagram and returns its first 4096 bytes. Those of other users are dropped: all
// may read the socket's name (proc_net_unix(5)).
func (n *Notices) Next() (string, error) {
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		size, controls, _, _, err := n.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return "", err
		}
		if fromThisUser(oob[:controls]) {
			return string(b[:size]), nil
		}
	}
}

func fromThisUser(oob []byte) bool {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return false
	}
	cred, err := unix.ParseUnixCredentials(&messages[0])
	return err == nil && int(cred.Uid) == os.Geteuid()
}

// Close closes the socket.
func (n *Notices) Close() error { return n.conn.Close() }
