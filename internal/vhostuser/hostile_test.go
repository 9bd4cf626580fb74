package vhostuser

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/vhostuser/frontend"
)

// TestHostileMessages sends one message too many or wrong. Each ends the session with a reason, and
// leaves no file of the frontend open (leaktest).
func TestHostileMessages(t *testing.T) {
	t.Parallel()
	words, halves := frontend.Words, frontend.Halves
	event := func(t *testing.T, _ *frontend.Frontend) []int {
		return []int{fileOf(t, unix.Eventfd, unix.EFD_CLOEXEC)}
	}
	memory := func(_ *testing.T, f *frontend.Frontend) []int { _, fd := f.Memory(); return []int{fd} }
	region := func(guest, size, user, offset uint64) []byte {
		return append(words(1), frontend.Region(guest, size, user, offset)...)
	}
	for _, tt := range []struct {
		name    string
		request uint32
		body    []byte
		files   func(t *testing.T, f *frontend.Frontend) []int
		want    string
	}{
		{"unknown request", 99, nil, nil, "request 99: unknown request"},
		{"log without its file", 6, words(4096, 0), nil, "with 0 files"},
		{"short log", 6, words(4096), memory, "a body of 8 bytes"},
		{"log of a pipe", 6, words(4096, 0), pipe, "file system type"},
		{"log that may not be written", 6, words(4096, 0), readOnly, "mmap of"},
		{"log longer than its file", 6, words(1<<40, 0), memory, "the file has"},
		{"log behind its file", 6, words(4096, 1<<63), memory, "the file has"},
		{"log that wraps", 6, words(4096, 1<<64-4096), memory, "the file has"},
		{"empty log", 6, words(0, 0), memory, "want 1 to"},
		{"log between words", 6, words(4096, 4), memory, "a multiple of 8"},
		{"log file without a file", 7, nil, nil, "0 files"},
		{"log file of a pipe", 7, nil, pipe, "want an eventfd"},
		{"announcement of a group", 19, words(1), nil, "one of a group"},
		{"short announcement", 19, halves(0), nil, "a body of 4 bytes"},
		{"features that were not offered", 2, words(1 << 40), nil, "were not offered"},
		{"second owner", 3, nil, nil, "SET_OWNER: the session has begun already"},
		{"features in use", 2, words(frontend.Version1), nil, "the rings are in use"},
		{"protocol features", 16, words(1 << 5), nil, "were not offered"},
		{"short number", 2, halves(1), nil, "a body of 4 bytes"},
		{"MTU", 20, words(1 << 32), nil, "MTU 4294967296"},
		{"table without its files", 5, append(words(2), make([]byte, 64)...), memory, "2 regions"},
		{"table of many regions", 5, append(words(1<<32-1), make([]byte, 4000)...), memory, "9 regions"},
		{"short table", 5, words(1), memory, "1 regions in 8 bytes"},
		{"empty table message", 5, nil, nil, "a body of 0 bytes"},
		{"region longer than its file", 5, region(0, 1<<40, 0, 0), memory, "the file has"},
		{"region behind its file", 5, region(0, 4096, 0, 1<<63), memory, "the file has"},
		{"huge region", 5, region(0, 1<<60, 0, 0), memory, "want 1 to"},
		{"empty region", 5, region(0, 0, 0, 0), memory, "want 1 to"},
		{"region that wraps", 5, region(1<<64-4096, 8192, 0, 0), memory, "are too high for its size"},
		{"user address that wraps", 5, region(0, 8192, 1<<64-4096, 0), memory, "are too high for its size"},
		{"region of a pipe", 5, region(0, 4096, 0, 0), pipe, "file system type"},
		{"region of a file of /proc", 37, region(0, 4096, 0, 0), procFile, "file system type"},
		{"region that may not be written", 37, region(0, 4096, 0, 0), readOnly, "mmap of 4096 bytes"},
		{"region without a file", 37, region(0, 4096, 0, 0), nil, "0 files"},
		{"region that is not there", 38, region(0, 4096, 0, 0), nil, "there is no region"},
		{"ring 7", 8, halves(7, 256), nil, "ring 7"},
		{"ring -1", 18, halves(1<<32-1, 1), nil, "ring"},
		{"size of a ring in use", 8, halves(0, 128), nil, "ring 0 is in use"},
		{"base of a ring in use", 10, halves(0, 128), nil, "ring 0 is in use"},
		{"ring outside of memory", 9, append(halves(0, 0), words(0, 0, 0, 0)...), nil, "not in one region"},
		{"short address", 9, words(0), nil, "a body of 8 bytes"},
		{"kick of a pipe", 12, words(1), pipe, "want an eventfd"},
		{"call of memory", 13, words(1), memory, "want an eventfd"},
		{"kick without a file", 12, words(1 | 1<<8), nil, "does not poll"},
		{"kick that says it has none", 12, words(1 | 1<<8), event, "1 files"},
		{"kick of ring 9", 12, words(9), event, "ring 9"},
		{"two kicks", 12, words(1), func(t *testing.T, f *frontend.Frontend) []int {
			return append(event(t, f), event(t, f)...)
		}, "2 files"},
		{"many files", 3, nil, func(t *testing.T, f *frontend.Frontend) (all []int) {
			for range 9 {
				all = append(all, event(t, f)...)
			}
			return all
		}, "more than 8 files"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, 1)
			f := b.guest(frontend.Config{})
			var files []int
			if tt.files != nil {
				files = tt.files(t, f)
			}
			if err := f.Send(tt.request, 1, tt.body, files...); err != nil {
				t.Fatal(err)
			}
			if err := b.end(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v: want %q", err, tt.want)
			}
			_ = f.Close()
		})
	}
}

// TestHostileHeaders ends the session for a message that no request begins.
func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	for want, head := range map[string][]byte{
		"version":         frontend.Halves(1, 2, 0),
		"no reply":        frontend.Halves(1, 5, 0),
		"want at most":    frontend.Halves(1, 1, 4097),
		"unexpected EOF":  frontend.Halves(2, 1, 8, 0),
		"unexpected EOF ": {1},
	} {
		b := newBench(t, 1)
		conn := b.serve()
		if _, err := conn.Write(head); err != nil {
			t.Fatal(err)
		}
		_ = conn.CloseWrite()
		if err := b.end(); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("%v: want %q", err, want)
		}
		_ = conn.Close()
	}
}

// TestRefusalIsAnswered: a frontend that asks for an acknowledgment gets one that says no.
func TestRefusalIsAnswered(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	f := b.guest(frontend.Config{})
	if err := f.Tell(frontend.SetMTU, frontend.Words(1)); err == nil || !strings.Contains(err.Error(), "refuses") {
		t.Error(err)
	}
	_ = b.end()
	_ = f.Close()
}

// TestHostileRing ends the session for what no driver may write.
func TestHostileRing(t *testing.T) {
	t.Parallel()
	for want, do := range map[string]func(p *frontend.Pair){
		"avail.idx":                     func(p *frontend.Pair) { p.Corrupt(257) },
		"not memory":                    func(p *frontend.Pair) { p.Descriptor(1<<50, 64, 0, 0) },
		"flags 0x2":                     func(p *frontend.Pair) { p.Descriptor(frontend.GuestBase, 64, 2, 0) },
		"of 0 bytes":                    func(p *frontend.Pair) { p.Descriptor(frontend.GuestBase, 0, 0, 0) },
		"after 1024 others":             func(p *frontend.Pair) { p.Descriptor(frontend.GuestBase, 64, 1, 0) },
		"descriptor 300 of 256":         func(p *frontend.Pair) { p.Descriptor(frontend.GuestBase, 64, 1, 300) },
		"an indirect table of 24 bytes": func(p *frontend.Pair) { p.Descriptor(frontend.GuestBase, 24, 4, 0) },
		"an indirect table at":          func(p *frontend.Pair) { p.Descriptor(1<<50, 32, 4, 0) },
		"not aligned":                   func(p *frontend.Pair) { p.Descriptor(frontend.GuestBase+1, 32, 4, 0) },
		"not the end of a chain":        func(p *frontend.Pair) { p.Descriptor(frontend.GuestBase, 32, 5, 0) },
	} {
		b := newBench(t, 1)
		f := b.guest(frontend.Config{})
		do(f.Pair[0])
		if err := b.end(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %q", err, want)
		}
		_ = f.Close()
	}
}

func fileOf(t *testing.T, make func(n uint, flags int) (int, error), flags int) int {
	t.Helper()
	fd, err := make(0, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func pipe(t *testing.T, _ *frontend.Frontend) []int {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	return fds[:1]
}

// procFile returns a file of a file system that is not in memory, whatever TMPDIR is on.
func procFile(t *testing.T, _ *frontend.Frontend) []int {
	t.Helper()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return []int{int(f.Fd())}
}

func readOnly(t *testing.T, f *frontend.Frontend) []int {
	t.Helper()
	_, fd := f.Memory()
	again, err := os.Open(filepath.Join("/proc/self/fd", strconv.Itoa(fd)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Close() })
	return []int{int(again.Fd())}
}

// FuzzMessages serves a frontend that sends anything, with an eventfd, a memfd or no file at each
// message.
func FuzzMessages(f *testing.F) {
	for request := range uint32(41) {
		f.Add(append(frontend.Halves(request, 1, 8), frontend.Words(1)...), byte(request))
	}
	for _, all := range [][]byte{
		append(frontend.Halves(5, 1, 40), append(frontend.Words(1), frontend.Region(0, 4096, 0, 0)...)...),
		append(frontend.Halves(9, 9, 40), frontend.Words(1, 0, 1024, 512, 0)...),
		append(frontend.Halves(8, 1, 8, 1, 16), frontend.Halves(12, 1, 8, 1, 0)...),
	} {
		f.Add(all, byte(1))
	}
	f.Fuzz(func(t *testing.T, messages []byte, files byte) {
		memory, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(memory)
		if err := unix.Ftruncate(memory, 1<<16); err != nil {
			t.Fatal(err)
		}
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(event)
		b := newBench(t, 1)
		conn := b.serve()
		for len(messages) > 0 {
			n := headerLen
			if len(messages) >= headerLen {
				n += int(min(binary.NativeEndian.Uint32(messages[8:]), maxBody))
			}
			n = min(n, len(messages))
			var oob []byte
			switch files & 3 {
			case 1:
				oob = unix.UnixRights(memory)
			case 2:
				oob = unix.UnixRights(event)
			case 3:
				oob = unix.UnixRights(memory, event)
			}
			files = files>>2 | files<<6
			if _, _, err := conn.WriteMsgUnix(messages[:n], oob, nil); err != nil {
				break
			}
			messages = messages[n:]
		}
		_ = conn.Close()
		_ = b.end()
	})
}
