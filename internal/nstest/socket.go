package nstest

import (
	"net"
	"testing"
)

// LeaveSocket leaves a socket of that network (unix or unixpacket) at a path, on which no process
// listens, as one that was killed does.
func LeaveSocket(tb testing.TB, network, path string) {
	tb.Helper()
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		tb.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
}
