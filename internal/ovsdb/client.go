// Package ovsdb is a client of the database of Open vSwitch: as much of the protocol of RFC 7047 as
// a program needs that writes a few rows and reads them back. It has transactions with their
// operations, and no schema, cache or monitor.
package ovsdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DefaultPath is the socket of the database of this machine's Open vSwitch.
const DefaultPath = "/run/openvswitch/db.sock"

// exchangeLimit bounds one request, whatever its context says. The database answers within
// milliseconds, and a request never asks it to wait for longer than maxWait.
const exchangeLimit = 10 * time.Second

const (
	// connectWait bounds how long a server's queue of connections may be full. One that accepts
	// none is stopped.
	connectWait = 5 * time.Second
	// maxPause is the longest pause between two tries to connect.
	maxPause = 64 * time.Millisecond
)

// maxRequest bounds a request, in bytes.
const maxRequest = 8 << 20

var (
	// ErrNotRunning is returned if no database server listens on the socket.
	ErrNotRunning = errors.New("no ovsdb-server runs")
	// ErrProtocol is returned if what a server sends is not an answer that RFC 7047 allows, or
	// exceeds a limit.
	ErrProtocol = errors.New("not an answer of a database server")
	// ErrUnknown is returned if the connection ended, or the context did, after a transaction was
	// sent. The database has carried it out, or has not, or will yet.
	ErrUnknown = errors.New("it is unknown whether the database has carried it out")
)

// A Client sends transactions to one database. Any goroutine may call its methods at any time: they
// wait for each other, and each ends with its context. After a request without an answer the Client
// is unusable.
type Client struct {
	conn     net.Conn
	path     string
	database string
	limit    time.Duration // of a request

	mu     sync.Mutex
	s      stream
	id     uint64
	broken error
}

// Dial connects to the server that listens on the Unix socket with that path, which may be written
// as Open vSwitch's tools do, with "unix:" before it. database is the name of the schema,
// "Open_vSwitch". If no server listens, the error matches ErrNotRunning with errors.Is. Dial also
// connects to a server that is stopped: the contexts of the methods limit the wait for an answer.
// The caller must close the Client.
func Dial(ctx context.Context, path, database string) (*Client, error) {
	path = strings.TrimPrefix(path, "unix:")
	conn, err := connect(ctx, path)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, path)
	case errors.Is(err, syscall.EAGAIN):
		return nil, fmt.Errorf(
			"connect to %s: %w (its queue of connections is full: check whether ovsdb-server is stopped)", path, err)
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("connect to the database of Open vSwitch: %w", context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("connect to the database of Open vSwitch: %w", err)
	}
	return newClient(conn, path, database), nil
}

// connect connects to a socket. The kernel keeps at most 64 connections for ovsdb-server to accept,
// and refuses more: that is so for a moment when many guests get their NICs at once.
func connect(ctx context.Context, path string) (net.Conn, error) {
	end := time.Now().Add(connectWait)
	for pause := time.Millisecond; ; pause = min(2*pause, maxPause) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause/2 + rand.N(pause)): // not all of them at the same time
		}
	}
}

func newClient(conn net.Conn, path, database string) *Client {
	return &Client{conn: conn, path: path, database: database, limit: exchangeLimit, s: newStream(conn)}
}

// Path returns the path of the socket.
func (c *Client) Path() string { return c.path }

// Close closes the connection. What was written stays.
func (c *Client) Close() error { return c.conn.Close() }

// Transact carries out the operations in order: all of them, or none. It returns a Result for each.
// If an operation fails, the error is an *Error. If the connection or the context ends before the
// answer, the error matches ErrUnknown with errors.Is.
func (c *Client) Transact(ctx context.Context, ops ...Op) ([]Result, error) {
	results, err := c.transact(ctx, ops)
	var refused *Error
	if err != nil && !errors.As(err, &refused) {
		return nil, fmt.Errorf("database %s: %w", c.path, err)
	}
	return results, err
}

func (c *Client) transact(ctx context.Context, ops []Op) ([]Result, error) {
	params := make([]any, 0, 1+len(ops))
	params = append(params, c.database)
	for _, o := range ops {
		params = append(params, o)
	}
	raw, err := c.call(ctx, "transact", params)
	if err != nil {
		return nil, err
	}
	return parseResults(raw, ops)
}

// call sends a request and returns the result of its answer.
func (c *Client) call(ctx context.Context, method string, params any) (json.RawMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return nil, c.broken
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	c.id++
	b, err := json.Marshal(map[string]any{"method": method, "params": params, "id": c.id})
	if err != nil {
		return nil, err
	}
	if len(b) > maxRequest {
		return nil, fmt.Errorf("the request has %d bytes: want at most %d", len(b), maxRequest)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.limit,
		fmt.Errorf("no answer within %v (check whether ovsdb-server is stopped)", c.limit))
	defer cancel()
	defer c.deadline(ctx)()
	a, err := c.exchange(b)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if !errors.Is(err, ErrProtocol) {
			err = fmt.Errorf("%w: %w", ErrUnknown, err)
		}
		c.broken = fmt.Errorf("the connection broke earlier: %w", err)
		return nil, err
	}
	if a.failed() {
		return nil, fmt.Errorf("%s was refused: %.200q", method, a.Error)
	}
	return a.Result, nil
}

// deadline makes reads and writes of the connection end with ctx, until undo is called.
func (c *Client) deadline(ctx context.Context) (undo func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() {
		if !stop() {
			<-done
		}
		_ = c.conn.SetDeadline(time.Time{})
	}
}

// message is a request, a notification or an answer. JSON-RPC tells them apart by method and id.
type message struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	ID     json.RawMessage `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

func (m *message) failed() bool { return len(m.Error) > 0 && string(m.Error) != "null" }

// maxOthers bounds how many messages may precede an answer: a server asks now and then whether its
// client is alive.
const maxOthers = 100

// exchange sends a request with the id c.id and reads until its answer.
func (c *Client) exchange(b []byte) (*message, error) {
	if _, err := c.conn.Write(b); err != nil {
		return nil, hungUp(err)
	}
	for range maxOthers {
		text, err := c.s.next()
		if err != nil {
			return nil, hungUp(err)
		}
		var m message
		if err := json.Unmarshal(text, &m); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		switch {
		case m.Method == "echo":
			if err := c.echo(&m); err != nil {
				return nil, hungUp(err)
			}
		case m.Method != "": // a notification that nobody has asked for
		case string(m.ID) != strconv.FormatUint(c.id, 10):
			return nil, fmt.Errorf("%w: its id is %.40q, want %d", ErrProtocol, m.ID, c.id)
		default:
			return &m, nil
		}
	}
	return nil, fmt.Errorf("%w: %d other messages before it", ErrProtocol, maxOthers)
}

// echo answers the question whether this client is alive (RFC 7047, section 4.1.11).
func (c *Client) echo(m *message) error {
	b, err := json.Marshal(map[string]any{"id": orNull(m.ID), "result": orNull(m.Params), "error": nil})
	if err == nil {
		_, err = c.conn.Write(b)
	}
	return err
}

func orNull(v json.RawMessage) json.RawMessage {
	if len(v) == 0 {
		return json.RawMessage("null")
	}
	return v
}

// hungUp says in words that the server has closed the connection.
func hungUp(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("ovsdb-server has closed the connection (has it ended?): %w", err)
	}
	return err
}
