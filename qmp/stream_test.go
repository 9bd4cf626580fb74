package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"vmnet/internal/vmm/qmptest"
)

// TestPrettyMonitor: a message takes as many lines as QEMU likes.
func TestPrettyMonitor(t *testing.T) {
	pretty := func(text string) string {
		var b bytes.Buffer
		if err := json.Indent(&b, []byte(text), "", "    "); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	path := fake(t, func(s *session) {
		s.Say(pretty(qmptest.Greeting))
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			s.Say(pretty(`{"event": "STOP", "data": {"a": "}{\"\\"}}`) + pretty(r.Returns(`{"name": "P2"}`)))
		}
	})
	c := dialT(t, path)
	events := c.Subscribe(4)
	defer events.Close()
	if name, err := c.Name(within(t, 20*time.Second)); err != nil || name != "P2" {
		t.Errorf("%q, %v", name, err)
	}
	if e := <-events.C; e.Name != "STOP" {
		t.Errorf("event %+v", e)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		command, text string
		size          int
		fits          bool
	}{
		"a reply":           {"a", `{"return": "%", "id": 1}`, maxMessage, true},
		"a longer one":      {"a", `{"return": "%", "id": 1}`, maxMessage + 1, false},
		"a schema":          {querySchema, `{"return": "%", "id": 1}`, maxSchema, true},
		"a longer schema":   {querySchema, `{"return": "%", "id": 1}`, maxSchema + 1, false},
		"an event":          {"a", `{"event": "STOP", "data": {"a": "%"}}`, maxEvent, true},
		"a longer event":    {"a", `{"event": "STOP", "data": {"a": "%"}}`, maxEvent + 1, false},
		"one without quote": {"a", `{"return": %`, maxMessage + 1, false},
	} {
		c := newConn(&relayed{cancel: func() {}})
		c.register(&pending{command: tc.command})
		text := strings.Replace(tc.text, "%", strings.Repeat("x", tc.size-len(tc.text)+1), 1)
		err := c.readAll(bufio.NewReader(io.MultiReader(strings.NewReader(qmptest.Greeting), strings.NewReader(text))))
		if fits := errors.Is(err, ErrClosed); fits != tc.fits || !fits && !errors.Is(err, ErrProtocol) {
			t.Errorf("%s of %d bytes: %v", name, len(text), err)
		}
		if len(err.Error()) > 1000 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
}

// TestFloodingMonitor: whatever a monitor sends without end, its client stays small and reads
// slowly.
func TestFloodingMonitor(t *testing.T) {
	for name, text := range map[string]string{
		"events": `{"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "` + strings.Repeat("x", 60<<10) +
			`"}}`,
		"one long message": strings.Repeat("x", 64<<10),
		"replies":          `{"return": {}, "id": 99999}`,
		"white space":      strings.Repeat(" \n", 32<<10),
	} {
		t.Run(name, func(t *testing.T) {
			sent := 0
			ended := make(chan struct{})
			path := fake(t, func(s *session) {
				defer close(ended)
				if !s.Negotiate() {
					return
				}
				if name == "one long message" {
					s.Say(`{"return": "`)
				}
				for {
					n, err := s.Conn.Write([]byte(text))
					if sent += n; err != nil {
						return
					}
				}
			})
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			c := dialT(t, path)
			events := c.Subscribe(256)
			defer events.Close()
			const patience = 700 * time.Millisecond
			err := c.Execute(within(t, patience), "query-rx-filter", nil, nil)
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrProtocol) {
				t.Errorf("got %v", err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 20<<20 {
				t.Errorf("it keeps %d KiB", grown>>10)
			}
			_ = c.Close()
			<-ended
			if most := throttleBurst + 3*throttleRate; sent > most {
				t.Errorf("%d bytes were read within %v, want at most %d", sent, patience, most)
			}
		})
	}
}

// TestClosingWhileThrottled: nobody waits for the pause.
func TestClosingWhileThrottled(t *testing.T) {
	path := fake(t, func(s *session) {
		if s.Negotiate() {
			for _, err := s.Conn.Write(make([]byte, 64<<10)); err == nil; {
				_, err = s.Conn.Write(bytes.Repeat([]byte(" "), 64<<10))
			}
		}
	})
	c, err := Dial(within(t, 20*time.Second), path)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_ = c.Close()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("closing took %v", took)
	}
}

// TestRxFilterIsOne: what a monitor adds to the one that was asked for is not kept.
func TestRxFilterIsOne(t *testing.T) {
	for list, want := range map[string]string{
		`{"name": "n"}`: "n",
		`{"name": "n"}, {"name": "other"}, 7, null`: "n",
		`{"name": "other"}, {"name": "n"}`:          "",
		`{}`:                                        "",
		`null`:                                      "",
		``:                                          "",
	} {
		c := fakeConn(t, func(s *session) {
			for r, ok := s.Next(); ok; r, ok = s.Next() {
				s.Say(r.Returns("[" + list + "]"))
			}
		})
		if f, err := c.RxFilter(within(t, 20*time.Second), "n"); f.Name != want || (err == nil) != (want != "") {
			t.Errorf("[%s]: %+v, %v", list, f, err)
		}
	}
}

// TestLivePrettyMonitor talks to QEMU's own.
func TestLivePrettyMonitor(t *testing.T) {
	q := startQEMU(t, "pc", "-name", "guest=pretty", "-qmp-pretty", "unix:pretty,server=on,wait=off")
	q.path = fmt.Sprintf("/proc/%d/cwd/pretty", q.cmd.Process.Pid)
	c := q.dial(t)
	if name, err := c.Name(within(t, 20*time.Second)); err != nil || name != "pretty" {
		t.Errorf("%q, %v", name, err)
	}
	var schema []json.RawMessage
	if err := c.Execute(within(t, 60*time.Second), querySchema, nil, &schema); err != nil || len(schema) < 100 {
		t.Errorf("the schema has %d entries, %v", len(schema), err)
	}
}
