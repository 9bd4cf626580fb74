package endpoint

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vmnet/internal/nstest"
)

func TestRemoveSocket(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	nstest.LeaveSocket(t, "unix", at("unused"))
	for _, kind := range []string{"unix", "unixpacket"} {
		l, err := net.ListenUnix(kind, &net.UnixAddr{Name: at(kind), Net: kind})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if err := os.WriteFile(at("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"unused":     "",
		"none":       "",
		"unix":       "another process listens on " + at("unix") + " (end it, or name another path)",
		"unixpacket": "connect to " + at("unixpacket") + ", which exists: protocol wrong type for socket (remove it, ",
		"file":       at("file") + " exists and is not a socket (remove it, or name another path)",
		"none/path":  "no such file or directory",
	} {
		err := RemoveSocket(at(name))
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	left, err := filepath.Glob(at("*"))
	if got := strings.ReplaceAll(strings.Join(left, " "), dir+"/", ""); err != nil || got != "file unix unixpacket" {
		t.Errorf("left in the directory: %s, %v", got, err)
	}
}

// TestListenAtOnce has several switches replace the same leftover socket: one of them succeeds, and
// keeps its own.
func TestListenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 100 {
		nstest.LeaveSocket(t, "unix", path)
		var files [4]*os.File
		var group sync.WaitGroup
		for i := range files {
			group.Go(func() { files[i], _ = ListenStream(path) })
		}
		group.Wait()
		listening := 0
		for _, f := range files {
			if f != nil {
				listening++
				defer f.Close()
			}
		}
		conn, err := net.Dial("unix", path)
		if err != nil || listening != 1 {
			t.Fatalf("%d of %d listen; connect: %v", listening, len(files), err)
		}
		_ = conn.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
