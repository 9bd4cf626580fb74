package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"vmnet/internal/endpoint"
)

// Bounds of what clients can ask for. Any local user may connect to a port.
const (
	maxClients  = 16
	readTime    = 5 * time.Second
	writeTime   = 30 * time.Second
	idleTime    = 2 * time.Minute
	maxHeader   = 16 << 10 // bytes
	reuse       = time.Second
	contentType = "text/plain; version=0.0.4; charset=utf-8"
)

// An Address is where metrics are served: a path of a unix socket, or a port of this host.
type Address struct{ network, at string }

// ParseAddress parses "/PATH" or "ADDRESS:PORT", whose address must be a loopback one.
func ParseAddress(s string) (Address, error) {
	if filepath.IsAbs(s) {
		return Address{"unix", s}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || port == "" {
		return Address{}, errors.New("want an absolute path, or localhost:PORT")
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsLoopback() {
		return Address{}, fmt.Errorf("%q is no loopback address: want an absolute path, or localhost:PORT "+
			"(a reverse proxy can serve other hosts)", host)
	}
	return Address{"tcp", net.JoinHostPort(host, port)}, nil
}

// String returns the path, or the address and port.
func (a Address) String() string { return a.at }

// Listen listens at the address, with a socket that its owner and group may use. It replaces a
// socket on which nobody listens any longer. Close the Listener, which removes the socket.
func (a Address) Listen() (net.Listener, error) {
	listen := func() (net.Listener, error) { return net.Listen(a.network, a.at) }
	if a.network == "unix" {
		listen = a.listenUnix
	}
	l, err := listen()
	if err != nil {
		return nil, fmt.Errorf("serve metrics at %s: %w", a, err)
	}
	return l, nil
}

func (a Address) listenUnix() (l net.Listener, err error) {
	err = endpoint.ReplaceSocket(a.at, func() (err error) {
		l, err = net.Listen(a.network, a.at)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err = os.Chmod(a.at, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve answers GET /metrics on l until ctx ends, and closes l. Collections do not overlap, and
// clients that ask within a second get the same one.
func Serve(ctx context.Context, l net.Listener, collect func(context.Context) []Family) error {
	c := &collector{collect: func() []Family { return collect(ctx) }} // a client's end does not end it for others
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", c.serve)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "vmnet: see /metrics") })
	s := &http.Server{
		Handler: local(l.Addr().Network(), mux), ReadTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeader,
	}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	err := s.Serve(&limited{Listener: l, slots: make(chan struct{}, maxClients), done: make(chan struct{})})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// local refuses requests whose host is a name: a web page elsewhere can have the user's browser
// send them, under a name that leads here.
func local(network string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.Host
		if host, _, err := net.SplitHostPort(name); err == nil {
			name = host
		}
		_, err := netip.ParseAddr(strings.Trim(name, "[]"))
		if network == "tcp" && err != nil && name != "localhost" {
			http.Error(w, "ask for localhost", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// A collector keeps the last collection for a moment.
type collector struct {
	collect func() []Family

	mu   sync.Mutex
	text []byte
	at   time.Time
}

func (c *collector) serve(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(c.get())
}

func (c *collector) get() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.text == nil || time.Since(c.at) > reuse {
		var b bytes.Buffer
		_ = Write(&b, c.collect()) // to memory
		c.text, c.at = b.Bytes(), time.Now()
	}
	return c.text
}

// limited accepts at most as many connections at a time as it has slots.
type limited struct {
	net.Listener
	slots chan struct{}
	done  chan struct{} // closed by Close
	once  sync.Once
}

// Accept waits for a slot, and then for a connection.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotted{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close ends a wait for a slot too.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// slotted is a connection that has a slot.
type slotted struct {
	net.Conn
	free func()
}

// Close closes the connection and frees its slot.
func (s *slotted) Close() error {
	defer s.free()
	return s.Conn.Close()
}
