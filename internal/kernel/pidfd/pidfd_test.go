package pidfd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

func TestHandle(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	h, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for pid, same := range map[int]bool{h.PID: true, os.Getpid(): false} {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "pidfd")
		if h.Is(f) != same {
			t.Errorf("process %d is the same: %v, want %v", pid, !same, same)
		}
		_ = f.Close()
	}
	if !h.Alive() || h.Check() != nil {
		t.Errorf("%v: want it alive", h.Check())
	}
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if h.Alive() || !errors.Is(h.Check(), fs.ErrNotExist) {
		t.Errorf("%v: want it ended", h.Check())
	}
	if _, err := Open(h.PID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open it again: %v", err)
	}
}

func TestOwnerIsTheUserOfAPlainProcess(t *testing.T) {
	if uid, err := Owner(os.Getpid()); err != nil || uid != os.Getuid() {
		t.Errorf("%d, %v", uid, err)
	}
	if _, err := Owner(-1); err == nil {
		t.Error("a process -1 has an owner")
	}
}

// TestOwnerOfASetuidProgram: the user nobody runs a set-user-ID copy of cat, which belongs to root.
func TestOwnerOfASetuidProgram(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	dir, err := os.MkdirTemp("", "owner")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(cat)
	program := filepath.Join(dir, "cat")
	if err = errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(program, text, 0o755),
		os.Chmod(program, 0o755|os.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	uid, err := Owner(cmd.Process.Pid)
	_, _ = stdin.Close(), cmd.Wait()
	if !errors.Is(err, ErrDoubtful) || !strings.Contains(err.Error(), "are [65534 0 0 0]") {
		t.Errorf("%d, %v: want ErrDoubtful with the four uids", uid, err)
	}
}

func TestAuxiliaryVectorOfBothSizes(t *testing.T) {
	for _, size := range []int{4, 8} {
		var data bytes.Buffer
		for _, word := range []uint64{6, 4096, 11, 0, 12, 0, 13, 0, 0, 0} {
			if size == 4 {
				_ = binary.Write(&data, binary.NativeEndian, uint32(word))
			} else {
				_ = binary.Write(&data, binary.NativeEndian, word)
			}
		}
		started, ran, ok := idsIn(data.Bytes())
		if !ok || started != 0 || ran != 0 {
			t.Errorf("words of %d bytes: %d, %d, %v", size, started, ran, ok)
		}
	}
	if _, _, ok := idsIn([]byte("short")); ok {
		t.Error("a vector without ids has some")
	}
}
