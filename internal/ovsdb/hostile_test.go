package ovsdb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// scripted is a connection to a server that takes whatever it is sent, sends a text, and hangs up.
type scripted struct {
	net.Conn
	io.Reader
}

func (s scripted) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s scripted) Write(p []byte) (int, error) { return len(p), nil }
func (s scripted) SetDeadline(time.Time) error { return nil }

func answering(text string) *Client {
	return newClient(scripted{Reader: strings.NewReader(text)}, "db.sock", "Open_vSwitch")
}

func TestHostileServer(t *testing.T) {
	ok := `{"id":1,"error":null,"result":[{"rows":[]}]}`
	refused := new(Error)
	for name, test := range map[string]struct {
		text string
		want error // nil: none
	}{
		"good":                {ok, nil},
		"spread out":          {" \r\n\t" + strings.ReplaceAll(ok, ",", " ,\n "), nil},
		"echo before":         {`{"method":"echo","params":["x"],"id":"echo"}` + ok, nil},
		"echo without params": {`{"method":"echo"}` + ok, nil},
		"notification":        {`{"method":"update","id":null,"params":[null,{}]}` + ok, nil},
		"nothing":             {"", ErrUnknown},
		"split anywhere":      {strings.Repeat(" ", keptBuffer-7) + ok, nil},
		"a brace in a string": {`{"id":1,"result":[{"rows":[]}],"x":"}\\\"]{"}`, nil},
		"half":                {ok[:20], ErrUnknown},
		"no object":           {"[1]", ErrProtocol},
		"no JSON":             {"HTTP/1.1 400 Bad Request\r\n\r\n", ErrProtocol},
		"braces only":         {"{]}", ErrProtocol},
		"not UTF-8":           {"{\xff}", ErrProtocol},
		"another id":          {`{"id":2,"error":null,"result":[]}`, ErrProtocol},
		"a string as id":      {`{"id":"1","error":null,"result":[]}`, ErrProtocol},
		"id twice":            {`{"id":1,"id":7,"error":null,"result":[]}`, ErrProtocol},
		"no result":           {`{"id":1}`, ErrProtocol},
		"result is no list":   {`{"id":1,"result":{"rows":[]}}`, ErrProtocol},
		"too few":             {`{"id":1,"result":[]}`, ErrProtocol},
		"too many":            {`{"id":1,"result":[{"rows":[]},{}]}`, ErrProtocol},
		"far too many":        {`{"id":1,"result":[{},{},{},{},{}]}`, ErrProtocol},
		"null":                {`{"id":1,"result":[null]}`, ErrProtocol},
		"deep":                {`{"id":1,"result":` + strings.Repeat("[", 1000), ErrProtocol},
		"deep objects":        {strings.Repeat(`{"a":`, 1000), ErrProtocol},
		"count is a string":   {`{"id":1,"result":[{"count":"1"}]}`, ErrProtocol},
		"UUID is a number":    {`{"id":1,"result":[{"uuid":["uuid",7]}]}`, ErrProtocol},
		"UUID is short":       {`{"id":1,"result":[{"uuid":["uuid","7"]}]}`, ErrProtocol},
		"many others":         {strings.Repeat(`{"method":"x"}`, maxOthers) + ok, ErrProtocol},
		"refusal":             {`{"id":1,"result":[{"error":"timed out","details":"x"}]}`, ErrTimedOut},
		"refused commit":      {`{"id":1,"result":[{"rows":[]},{"error":"timed out"}]}`, ErrTimedOut},
	} {
		t.Run(name, func(t *testing.T) {
			c := answering(test.text)
			_, err := c.Transact(t.Context(), Select("Bridge", []string{"name"}))
			if test.want == nil && err != nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if err != nil && !errors.As(err, &refused) && !strings.Contains(err.Error(), "database db.sock: ") {
				t.Errorf("%v does not name the socket", err)
			}
		})
	}
	c := answering(`{"id":1,"error":{"error":"unknown database"},"result":null}`)
	if _, err := c.Transact(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown database") {
		t.Errorf("got %v", err)
	}
}

// TestHostileRows: a row of another type is an error, not a zero value.
func TestHostileRows(t *testing.T) {
	for _, text := range []string{
		`null`, `{}`, `[1]`, `[{"_uuid":"x"}]`, `[{"name":1}]`, `[{"ports":["set"]}]`, `[{"ports":["set",{}]}]`,
		`[{"ports":["set",[["uuid","x"]]]}]`, `[{"ports":["uuid"]}]`, `[{"external_ids":{}}]`,
		`[{"external_ids":["map",{}]}]`, `[{"external_ids":["map",[["a"]]]}]`, `[{"external_ids":["map",[["a",1]]]}]`,
		`[{"external_ids":["set",[]]}]`, `[{"stp_enable":"yes"}]`, `[{},`,
	} {
		if rows, err := Into[bridge](Result{rows: json.RawMessage(text)}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %+v, %v", text, rows, err)
		}
	}
	if err := eachOf([]byte("[{},{},{}]"), 2, func(json.RawMessage) error { return nil }); err == nil {
		t.Error("more items than allowed")
	}
	if _, err := Into[bridge](Result{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("no rows: %v", err)
	}
}

// endless is a server that sends the same text for ever.
type endless struct {
	text []byte
	sent int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.text)
	e.sent += n
	return n, nil
}

func TestEndlessMessage(t *testing.T) {
	e := &endless{text: bytes.Repeat([]byte("x"), 4096)}
	s := newStream(io.MultiReader(strings.NewReader(`{"`), e))
	s.limit = 1 << 20
	if _, err := s.next(); !errors.Is(err, ErrProtocol) || e.sent > s.limit+keptBuffer {
		t.Errorf("%v, after %d bytes", err, e.sent)
	}
}

// TestLargeRequest: a request that no server would take is not sent.
func TestLargeRequest(t *testing.T) {
	c := answering("")
	_, err := c.Transact(t.Context(), Insert("Bridge", "b", Row{"name": strings.Repeat("x", maxRequest)}))
	if err == nil || !strings.Contains(err.Error(), "want at most") || errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Transact(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknown) {
		t.Errorf("of a context that has ended: %v", err)
	}
}

// FuzzAnswer gives a client whatever a server may send.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"id":1,"error":null,"result":[{"rows":[{"_uuid":["uuid","550e8400-e29b-41d4-a716-446655440000"]}]},{"count":1}]}`,
		`{"id":1,"result":[{"rows":[{"ports":["set",[]],"external_ids":["map",[["a","b"]]]}]},{"error":"timed out"}]}`,
		`{"method":"echo","params":[],"id":"echo"}{"id":1,"error":"x"}`, "{\"\\\"\xff", `[[[`, "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c := answering(string(text))
		rs, err := c.Transact(t.Context(), Select("Bridge", bridgeColumns), Mutate("Bridge", nil))
		if err != nil {
			return
		}
		if len(rs) != 2 {
			t.Fatalf("%d results without an error", len(rs))
		}
		rows, err := Into[bridge](rs[0])
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.UUID != "" && !validUUID(string(r.UUID)) {
				t.Fatalf("%q", r.UUID)
			}
			again, err := json.Marshal(map[string]any{"_uuid": r.UUID, "ports": r.Ports, "external_ids": r.ExternalIDs})
			if err != nil {
				t.Fatal(err)
			}
			if !json.Valid(again) {
				t.Fatalf("%s", again)
			}
		}
	})
}
