package control

import (
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"vmnet/bridge/vswitch/vport"
)

// fake listens as a switch does, and answers every request with the same message over and over.
func fake(t *testing.T, message string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close() //nolint:errcheck
		if _, err := conn.Read(make([]byte, MaxMessage)); err != nil {
			return
		}
		for err == nil {
			_, err = conn.Write([]byte(message))
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return path
}

// TestAnswersAreBounded checks that an endless or invalid reply costs the client little: any user
// can run a switch that replies arbitrarily.
func TestAnswersAreBounded(t *testing.T) {
	port := `{"name":"a","kind":"socket","config":{}}`
	ports := func(n int, one string) string {
		return `{"more":true,"ports":[` + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + `]}`
	}
	filler := strings.Repeat("x", MaxMessage-1000)
	for what, test := range map[string]struct{ message, want string }{
		"ports without end":   {ports(200, port), "more than 1024 ports"},
		"many in one message": {ports(MaxMessage/3-20, "{}"), "more than 2048 items in one message"},
		"no port":             {ports(1, `{"name":"a b","kind":"socket"}`), "name"},
		"reasons without end": {ports(1, `{"name":"a","kind":"socket","config":{},"stats":{"drops":{`+reasons(4000)+
			`}}}`), "4000 drop reasons"},
		"bytes without end": {
			`{"more":true,"info":{"name":"` + filler + `"}}`,
			"more than 33554432 bytes or 65536 messages",
		},
		"nothing without end": {`{"more":true}`, "more than 33554432 bytes"},
		"more than a message": {strings.Repeat(" ", MaxMessage) + "{}", "message"},
		"not a list":          {`{"ports":{}}`, `want a list, not "{}"`},
		"null":                {`{"ports":null}`, `want a list, not "null"`},
	} {
		t.Run(what, func(t *testing.T) {
			c := client(t, fake(t, test.message))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			kept := 0
			err := c.EachPort(soon(t), func(Port) error { kept++; return nil })
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), test.want) || kept > vport.MaxPorts {
				t.Errorf("%d ports, %.200v; want %q", kept, err, test.want)
			}
			if more := int64(after.HeapSys) - int64(before.HeapSys); more > 24<<20 {
				t.Errorf("it took %d bytes", more)
			}
		})
	}
}

func reasons(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"r%d":1`, i))
	}
	return strings.Join(all, ",")
}
