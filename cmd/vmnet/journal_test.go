package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestJournal: if systemd says that stderr is a stream of the journal, lines have priorities and no
// times.
func TestJournal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(w.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	for stream, want := range map[string]bool{
		"": false, "1:1": false, fmt.Sprintf("%d:%d", stat.Dev, stat.Ino): true,
		fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1): false,
	} {
		t.Setenv("JOURNAL_STREAM", stream)
		if got := isJournal(w); got != want {
			t.Errorf("%q: %v", stream, got)
		}
	}
	if isJournal(&strings.Builder{}) {
		t.Error("a writer that is no file")
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
	a := &app{err: w, journal: isJournal(w), started: true}
	log := a.logger("text")
	log.Info("put back", "nic", "net0")
	log.With("guest", "web").WithGroup("g").Warn("cannot", "error", "a b")
	log.Debug("not told")
	log.Error("wrong")
	a.logger("json").Warn("cannot")
	a.note("the bridge is down")
	a.say("waiting")
	a.report(nil, errors.Join(errors.New("port: no such device"), errors.New("undo tap: gone")))
	_ = w.Close()
	got, err := io.ReadAll(r)
	const want = `<6>msg="put back" nic=net0
<4>msg=cannot guest=web g.error="a b"
<3>msg=wrong
<4>{"msg":"cannot"}
<5>vmnet: note: the bridge is down
<6>vmnet: waiting
<3>vmnet: port: no such device
<3>vmnet: also: undo tap: gone
`
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}
