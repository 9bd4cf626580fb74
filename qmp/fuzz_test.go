package qmp

import (
	"bufio"
	"bytes"
	"errors"
	"testing"
)

// FuzzReader feeds the reader whatever a peer may send, while commands with and
// without a descriptor and slow subscribers are waiting.
func FuzzReader(f *testing.F) {
	for _, seed := range []string{
		"",
		greetingLine + "\r\n" + `{"return": {}, "id": 1}` + "\r\n" + `{"id": 2, "error": {"class": "GenericError", "desc": "x"}}` + "\r\n",
		greetingLine + "\n" + `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n" + `{"event": "X", "data": {}}` + "\n",
		greetingLine + "\n" + `{"return": [1, 2], "id": 1}` + "\n" + `{"return": {}, "id": 1}` + "\n" + `{"return": {}, "id": 99}` + "\n",
		greetingLine + "\n" + greetingLine + "\n",
		greetingLine + "\n" + `{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n",
		greetingLine + "\n" + `{"return": null, "id": null, "event": null}` + "\n",
		`{"QMP": null}` + "\n" + `{"QMP": {}}` + "\n",
		greetingLine + "\n{\"return\": {\"x\": \"" + string(bytes.Repeat([]byte("y"), 100)) + "\"}, \"id\": 2}\n\xff",
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
		err := c.readAll(bufio.NewReaderSize(bytes.NewReader(data), 16), 4096)
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
