package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
)

// priority is a line's priority in the journal and in syslog(3).
type priority int

const (
	priorityError   priority = 3
	priorityWarning priority = 4
	priorityNotice  priority = 5
	priorityInfo    priority = 6
	priorityDebug   priority = 7
)

// prefix returns the prefix that the journal reads as a line's priority and removes
// (SyslogLevelPrefix= in systemd.exec(5)).
func (p priority) prefix() string { return fmt.Sprintf("<%d>", p) }

// isJournal reports whether w is the stream to the journal: systemd stores its device and inode in
// $JOURNAL_STREAM (systemd.exec(5)). A child with another stderr inherits the variable as well.
func isJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// logger returns a logger that writes lines to stderr, as text or as JSON. For the journal it omits
// the time, which the journal adds, and writes the level as a prefix.
func (a *app) logger(format string) *slog.Logger {
	handler := func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewTextHandler(w, o) }
	if format == "json" {
		handler = func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewJSONHandler(w, o) }
	}
	if !a.journal {
		return slog.New(handler(a.err, nil))
	}
	j := journalHandler{}
	for _, p := range []priority{priorityError, priorityWarning, priorityInfo, priorityDebug} {
		j[p] = handler(prefixed{a.err, p.prefix()}, &slog.HandlerOptions{ReplaceAttr: withoutTimeAndLevel})
	}
	return slog.New(j)
}

func withoutTimeAndLevel(groups []string, attr slog.Attr) slog.Attr {
	if len(groups) == 0 && (attr.Key == slog.TimeKey || attr.Key == slog.LevelKey) {
		return slog.Attr{}
	}
	return attr
}

// prefixed puts a prefix before each write. slog's handlers write a line at a time.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

// journalHandler is a slog.Handler with a handler for each priority.
type journalHandler map[priority]slog.Handler

func (j journalHandler) of(l slog.Level) slog.Handler {
	switch {
	case l >= slog.LevelError:
		return j[priorityError]
	case l >= slog.LevelWarn:
		return j[priorityWarning]
	case l >= slog.LevelInfo:
		return j[priorityInfo]
	}
	return j[priorityDebug]
}

func (j journalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return j.of(l).Enabled(ctx, l)
}

func (j journalHandler) Handle(ctx context.Context, r slog.Record) error {
	return j.of(r.Level).Handle(ctx, r)
}

func (j journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return j.with(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (j journalHandler) WithGroup(name string) slog.Handler {
	return j.with(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (j journalHandler) with(f func(slog.Handler) slog.Handler) slog.Handler {
	with := journalHandler{}
	for p, h := range j {
		with[p] = f(h)
	}
	return with
}
