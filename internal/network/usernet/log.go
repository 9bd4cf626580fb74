package usernet

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxLog bounds a log in bytes; a full one is kept once, under another name.
const maxLog = 64 << 10

func oldLog(path string) string { return path + ".1" }

// A Log is a file of bounded size.
type Log struct {
	mu   sync.Mutex
	path string
}

// OpenLog returns the log of a network.
func OpenLog(state, name string) *Log { return &Log{path: logFile(state, name)} }

// Add adds a line with the time. A full disk loses it.
func (l *Log) Add(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if info, err := os.Lstat(l.path); err == nil && info.Size() > maxLog {
		_ = os.Rename(l.path, oldLog(l.path))
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%s %s\n", time.Now().UTC().Format(time.RFC3339), text)
}
