package metrics

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vmnet/internal/nstest"
)

func TestParseAddress(t *testing.T) {
	for s, want := range map[string]string{
		"/run/vmnet/metrics": "/run/vmnet/metrics", "localhost:9633": "127.0.0.1:9633", "127.0.0.2:0": "127.0.0.2:0",
		"[::1]:9633": "[::1]:9633", "": "", ":9633": "", "0.0.0.0:9633": "", "192.0.2.1:9633": "", "relative": "",
		"example.org:80": "", "localhost:": "", "localhost": "",
	} {
		a, err := ParseAddress(s)
		if got := a.String(); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", s, got, err, want)
		}
	}
}

// served serves one metric, whose value is the number of collections.
func served(t *testing.T, at string) (net.Addr, *atomic.Int64) {
	t.Helper()
	a, err := ParseAddress(at)
	if err != nil {
		t.Fatal(err)
	}
	l, err := a.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var collections atomic.Int64
	go func() {
		done <- Serve(ctx, l, func(context.Context) []Family {
			n := collections.Add(1)
			return []Family{{Name: "vmnet_test", Kind: Gauge, Help: "x", Samples: []Sample{{nil, float64(n)}}}}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr(), &collections
}

// ask returns the status and the text of an answer.
func ask(t *testing.T, at net.Addr, method, host, path string) (int, string) {
	t.Helper()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, at.Network(), at.String())
		},
	}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func TestServe(t *testing.T) {
	at, collections := served(t, "localhost:0")
	for range 5 {
		status, text := ask(t, at, "GET", "localhost", "/metrics")
		if status != 200 || !strings.HasPrefix(text, "# HELP vmnet_test x\n# TYPE vmnet_test gauge\nvmnet_test ") {
			t.Errorf("%d %q", status, text)
		}
	}
	if n := collections.Load(); n == 0 {
		t.Error("nothing was collected")
	}
	for _, c := range []struct {
		method, host, path string
		want               int
	}{
		{"GET", "rebound.example", "/metrics", 403},
		{"GET", "127.0.0.1:80", "/", 200},
		{"GET", "[::1]", "/metrics", 200},
		{"GET", "localhost", "/secret", 404},
		{"POST", "localhost", "/metrics", 405},
	} {
		if status, text := ask(t, at, c.method, c.host, c.path); status != c.want {
			t.Errorf("%s %s%s: %d %s, want %d", c.method, c.host, c.path, status, text, c.want)
		}
	}
}

// TestSocket: a socket that a killed process has left is replaced; another file is not, nor a
// socket that is in use.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics")
	nstest.LeaveSocket(t, "unix", path)
	at, _ := served(t, path)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", st, err)
	}
	if status, _ := ask(t, at, "GET", "any.name", "/metrics"); status != 200 {
		t.Error(status)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, taken := range []string{path, file} {
		a, err := ParseAddress(taken)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := a.Listen(); err == nil {
			l.Close()
			t.Errorf("%s was replaced", taken)
		}
	}
	if text, err := os.ReadFile(file); string(text) != "kept" {
		t.Error(err)
	}
}

// TestIdleClients: clients that send nothing keep others out only until they hang up.
func TestIdleClients(t *testing.T) {
	at, _ := served(t, "localhost:0")
	var idle []net.Conn
	for range maxClients {
		c, err := net.Dial(at.Network(), at.String())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	for _, c := range idle {
		c.Close()
	}
	nstest.Eventually(t, 30*time.Second, "a client is served", func() bool {
		status, _ := ask(t, at, "GET", "localhost", "/metrics")
		return status == 200
	})
}
