package fdpass

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// pair makes two connected ends. The second is opened as by the process that inherits it.
func pair(t *testing.T) (a, b *Socket) {
	t.Helper()
	a, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(theirs.Fd()))
	if err == nil {
		err = theirs.Close()
	}
	if err == nil {
		b, err = Inherited(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func TestFilesCrossWithTheirMessage(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Send([]byte("one"), w, w); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Send([]byte("two")), w.Close()); err != nil {
		t.Fatal(err)
	}
	got, files, err := b.Receive(16)
	if err != nil || string(got) != "one" || len(files) != 2 {
		t.Fatalf("got %q, %d files, %v", got, len(files), err)
	}
	if _, err := files[1].WriteString("x"); err != nil {
		t.Error(err)
	}
	flags, err := unix.FcntlInt(files[0].Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("a received file is inherited: %v", err)
	}
	CloseAll(files)
	if all, err := io.ReadAll(r); err != nil || string(all) != "x" {
		t.Errorf("through the file came %q, %v", all, err)
	}
	if got, files, err := b.Receive(16); err != nil || string(got) != "two" || len(files) != 0 {
		t.Errorf("got %q, %d files, %v", got, len(files), err)
	}
	_ = a.Close()
	if _, _, err := b.Receive(16); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want EOF", err)
	}
	if err := b.Send([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v, want EPIPE", err)
	}
}

func TestWhatIsTooMuchIsRefused(t *testing.T) {
	a, b := pair(t)
	files := make([]*os.File, MaxFiles+1)
	for i := range files {
		files[i] = os.Stdin
	}
	for _, err := range []error{a.Send(nil), a.Send([]byte("x"), files...)} {
		if err == nil {
			t.Error("it was sent")
		}
	}
	if err := a.Send([]byte("a long message"), files[1:]...); err != nil {
		t.Fatal(err)
	}
	if got, files, err := b.Receive(4); err == nil {
		t.Errorf("got %q with %d files, want an error since it was truncated", got, len(files))
	}
}

func TestOnlyUnixSocketsAreTakenOver(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	inet, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inet)
	for _, fd := range []int{-1, 1 << 20, int(r.Fd()), inet} {
		if _, err := Inherited(fd); err == nil {
			t.Errorf("fd %d was accepted", fd)
		}
	}
}
