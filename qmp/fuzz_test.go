package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"vmnet/internal/vmm/qmptest"
)

// FuzzReader feeds the reader whatever a peer may send, while commands with and
// without a descriptor and slow subscribers are waiting.
func FuzzReader(f *testing.F) {
	for _, seed := range []string{
		"",
		qmptest.Greeting + "\r\n" + `{"return": {}, "id": 1}` + "\r\n" +
			`{"id": 2, "error": {"class": "GenericError", "desc": "x"}}` + "\r\n",
		qmptest.Greeting + "\n" + `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n" +
			`{"event": "X", "data": {}}` + "\n",
		qmptest.Greeting + "\n" + `{"return": [1, 2], "id": 1}` + "\n" + `{"return": {}, "id": 1}` + "\n" +
			`{"return": {}, "id": 99}` + "\n",
		qmptest.Greeting + "\n" + qmptest.Greeting + "\n",
		qmptest.Greeting + "\n" + `{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n",
		qmptest.Greeting + "\n" + `{"return": null, "id": null, "event": null}` + "\n",
		`{"QMP": null}` + "\n" + `{"QMP": {}}` + "\n",
		"{\"QMP\":\n {\n}\r\n}{\"return\": [\n\"}\\\"\\\\\"], \"id\":\n1}\n{\"event\"\n:\"STOP\"}",
		qmptest.Greeting + "\n{\"return\": {\"x\": \"" + string(bytes.Repeat([]byte("y"), 100)) +
			"\"}, \"id\": 2}\n\xff",
		"[[[[[[[[[[[[[[[[\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newConn(&relayed{cancel: func() {}})
		c.passing <- struct{}{}
		c.register(&pending{command: "a"})
		c.register(&pending{command: "b", passes: true})
		all, some := c.Subscribe(1), c.Subscribe(2, "STOP")
		err := c.readAll(bufio.NewReaderSize(bytes.NewReader(data), 16))
		if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrProtocol) {
			t.Fatalf("ended with %v", err)
		}
		if errors.Is(err, ErrClosed) && errors.Is(err, ErrProtocol) {
			t.Fatalf("both: %v", err)
		}
		c.fail(err)
		c.closeSubscriptions()
		for range all.C {
		}
		for e := range some.C {
			if e.Name != "STOP" {
				t.Fatalf("%s was not subscribed to", e.Name)
			}
		}
	})
}

// FuzzStream compares the objects that a stream finds, in pieces of every size, with those
// that encoding/json finds.
func FuzzStream(f *testing.F) {
	for _, seed := range []string{
		"", " \r\n{}", `{"a":"}"}{"b":[{},"\\"]}`, "{\n  \"a\": [\n1,\n2]\n}\n{}", `{"a":"\"}`, `[1]`, `{"a":1`,
		`{"a":1}}`, `{]`, "{\"\xff\":0}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := stream{r: bufio.NewReaderSize(bytes.NewReader(data), 16), limit: func() int { return 1 << 10 }}
		reference := json.NewDecoder(bytes.NewReader(data))
		for {
			var want json.RawMessage
			errWant := reference.Decode(&want)
			got, err := s.next()
			switch {
			case err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrProtocol):
				t.Fatalf("ended with %v", err)
			case errWant != nil && (err != nil || !json.Valid(got)), err != nil &&
				(want[0] != '{' || len(want) > 1<<10):
				return
			case err != nil, !bytes.Equal(got, want):
				t.Fatalf("%q: got %q, %v; encoding/json finds %q, %v", data, got, err, want, errWant)
			}
		}
	})
}
