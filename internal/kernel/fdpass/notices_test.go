package fdpass

import (
	"net"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

// TestNotices: what another user sends is dropped, and what this one sends comes whole.
func TestNotices(t *testing.T) {
	nstest.RequireRoot(t)
	n, err := ListenForNotices()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	sent := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, with its user
		const nobody = 65534
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody)
		if errno != 0 {
			sent <- errno
			return
		}
		sent <- send(n.Name(), "READY=1")
	}()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if err := send(n.Name(), "own"); err != nil {
		t.Fatal(err)
	}
	if text, err := n.Next(); text != "own" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

func send(name, text string) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(text))
	return err
}
