package vswitch

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFrameBeforeArming lets a frame arrive between the receive that finds nothing and the arming
// of the socket, after a burst had it disarmed.
func TestFrameBeforeArming(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	own := os.NewFile(uintptr(fds[1]), "own")
	defer own.Close()
	p, err := duplicatePolled(own, func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.deadline(20 * time.Second)

	send := func() {
		if _, err := unix.Write(fds[0], []byte("frame")); err != nil {
			t.Error(err)
		}
	}
	late := false // a frame arrives after the next receive that finds nothing
	try := func(fd uintptr) (n int, err error) {
		b := make([]byte, 64)
		for {
			if _, err := unix.Read(int(fd), b); err != nil {
				if n == 0 && late {
					late = false
					send()
				}
				return n, nil
			}
			n++
		}
	}
	for range 100 {
		time.AfterFunc(time.Millisecond, func() {
			for range crowd {
				send()
			}
		})
		for got := 0; got < crowd; { // the first read waits, so that the socket is armed
			n, err := p.read(try)
			if err != nil {
				t.Fatalf("after %d frames of a burst: %v", got, err)
			}
			got += n
		}
		late = true
		if n, err := p.read(try); n != 1 || err != nil {
			t.Fatalf("of a frame that arrives before the socket is armed: %d, %v", n, err)
		}
	}
}
