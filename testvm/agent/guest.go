package agent

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// ErrGone is the error of requests whose connection to the guest has ended.
var ErrGone = errors.New("the connection to the agent has ended")

// noLimit is the time limit of a request that may run as long as the connection lasts.
const noLimit = 10000 * time.Hour

// Guest is the host's end: it sends requests to the program in the guest. Requests may run
// concurrently. Each is abandoned when its ctx ends, in the guest too. Errors name the guest and
// the method.
type Guest struct {
	name   string
	conn   net.Conn
	prefix string // of request ids: late replies to another connection do not match
	done   chan struct{}

	writing sync.Mutex

	mu      sync.Mutex
	next    int
	pending map[string]*pending
}

// pending is a request that has no reply yet.
type pending struct {
	reply chan response

	mu   sync.Mutex // held while part runs
	part func(json.RawMessage)
}

// give passes on a part, unless the request was abandoned.
func (p *pending) give(part json.RawMessage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.part != nil {
		p.part(part)
	}
}

// drop makes sure that part is not called again.
func (p *pending) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.part = nil
}

// NewGuest returns a Guest that uses and owns conn. Close it.
func NewGuest(name string, conn net.Conn) *Guest {
	g := &Guest{
		name: name, conn: conn, prefix: rand.Text()[:8], done: make(chan struct{}),
		pending: map[string]*pending{},
	}
	go g.read()
	return g
}

// Dial opens the agent socket at path. QEMU serves one connection at a time: a second one waits
// unanswered until the first is closed.
func Dial(ctx context.Context, name, path string) (*Guest, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("guest %s: open the agent's socket: %w", name, err)
	}
	return NewGuest(name, conn), nil
}

// Close frees the agent's socket for other clients. Running requests fail with ErrGone, as they do
// when the guest ends; Close is then unnecessary, but harmless.
func (g *Guest) Close() error {
	err := g.conn.Close()
	<-g.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Done is closed when the connection has ended.
func (g *Guest) Done() <-chan struct{} { return g.done }

func (g *Guest) read() {
	defer close(g.done)
	defer g.conn.Close()
	r := bufio.NewReader(g.conn)
	for {
		line, err := readLine(r)
		if err != nil {
			return
		}
		var res response
		if line == nil || json.Unmarshal(line, &res) != nil {
			continue
		}
		g.mu.Lock()
		p, ok := g.pending[res.ID]
		if res.Part == nil {
			delete(g.pending, res.ID)
		}
		g.mu.Unlock()
		switch {
		case ok && res.Part != nil:
			p.give(res.Part)
		case ok:
			p.reply <- res
		}
	}
}

// call sends a request and waits for its reply. result may be nil.
func (g *Guest) call(ctx context.Context, method string, params, result any) error {
	return g.stream(ctx, method, params, nil, result)
}

// stream is call for a method with parts. It calls part for each of them, one after the other,
// before it returns. The next part, and all other replies, wait for part to return.
func (g *Guest) stream(ctx context.Context, method string, params any, part func(json.RawMessage), result any) error {
	res, err := g.roundTrip(ctx, method, params, part)
	if err == nil && res.Error != "" {
		err = errors.New(res.Error)
	}
	if err == nil && result != nil {
		err = json.Unmarshal(res.Result, result)
	}
	if err != nil {
		return fmt.Errorf("guest %s: %s: %w", g.name, method, err)
	}
	return nil
}

func (g *Guest) roundTrip(ctx context.Context, method string, params any,
	part func(json.RawMessage),
) (response, error) {
	raw, err := json.Marshal(params)
	if err != nil {
		return response{}, err
	}
	req := request{Method: method, Params: raw}
	if deadline, ok := ctx.Deadline(); ok {
		// The guest's limit is for a host that has gone; otherwise ctx ends first, here.
		req.TimeoutMS = max(0, time.Until(deadline).Milliseconds()) + 1000
	} else if part != nil {
		req.TimeoutMS = noLimit.Milliseconds()
	}
	p := &pending{reply: make(chan response, 1), part: part}
	g.mu.Lock()
	g.next++
	req.ID = g.prefix + "-" + strconv.Itoa(g.next)
	g.pending[req.ID] = p
	g.mu.Unlock()
	defer p.drop()
	defer g.forget(req.ID)
	if err := g.send(ctx, req); err != nil {
		return response{}, err
	}
	select {
	case res := <-p.reply:
		return res, nil
	case <-g.done:
		return response{}, ErrGone
	case <-ctx.Done():
		g.cancel(ctx, req.ID)
		return response{}, context.Cause(ctx)
	}
}

func (g *Guest) forget(id string) {
	g.mu.Lock()
	delete(g.pending, id)
	g.mu.Unlock()
}

// cancel asks the guest to abandon a request, if it still listens.
func (g *Guest) cancel(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
	defer cancel()
	raw, _ := json.Marshal(id)
	_ = g.send(ctx, request{Method: cancelMethod, Params: raw})
}

// send writes one message. It blocks if the socket is full because the guest does not read; ctx
// ends that.
func (g *Guest) send(ctx context.Context, req request) error {
	line, err := encode(req)
	if err != nil {
		return err
	}
	g.writing.Lock()
	defer g.writing.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	_ = g.conn.SetWriteDeadline(time.Time{})
	fired := make(chan struct{})
	stopped := context.AfterFunc(ctx, func() {
		_ = g.conn.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	_, err = g.conn.Write(line)
	if !stopped() {
		<-fired // otherwise it would end a later write
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
}
