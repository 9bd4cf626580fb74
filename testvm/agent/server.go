package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// maxRun ends a request that has no time limit.
const maxRun = 10 * time.Minute

// A Handler serves one method. It must return soon after ctx ends. It may send parts before its
// result if the method has them.
type Handler func(ctx context.Context, params json.RawMessage, send func(part any)) (any, error)

// Method makes a handler of a function with typed parameters.
func Method[P, R any](f func(context.Context, P) (R, error)) Handler {
	return Streaming(func(ctx context.Context, params P, _ func(any)) (R, error) { return f(ctx, params) })
}

// Streaming makes a handler of a function that sends parts as well.
func Streaming[P, R any](f func(context.Context, P, func(part any)) (R, error)) Handler {
	return func(ctx context.Context, raw json.RawMessage, send func(any)) (any, error) {
		var params P
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &params); err != nil {
				return nil, fmt.Errorf("read the parameters: %w", err)
			}
		}
		return f(ctx, params, send)
	}
}

// Serve answers requests until a read from port fails, and returns that error: io.EOF if the peer
// has gone. It cancels the requests that still run and does not wait for them. port stays open.
func Serve(ctx context.Context, port io.ReadWriter, handlers map[string]Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{port: port, handlers: handlers, cancel: map[string]context.CancelFunc{}}
	r := bufio.NewReader(port)
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		var req request
		if line == nil || json.Unmarshal(line, &req) != nil {
			continue
		}
		if req.Method == cancelMethod {
			s.abandon(req.Params)
			continue
		}
		go s.run(ctx, req)
	}
}

type server struct {
	handlers map[string]Handler

	writing sync.Mutex
	port    io.Writer

	mu     sync.Mutex
	cancel map[string]context.CancelFunc // by request id
}

func (s *server) run(ctx context.Context, req request) {
	limit := maxRun
	if req.TimeoutMS > 0 {
		limit = time.Duration(req.TimeoutMS) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	s.mu.Lock()
	s.cancel[req.ID] = cancel
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.cancel, req.ID)
		s.mu.Unlock()
		cancel()
	}()
	s.reply(req.ID, s.call(ctx, req))
}

// call runs the handler; a panic becomes an error, since /init must not exit.
func (s *server) call(ctx context.Context, req request) (res response) {
	defer func() {
		if p := recover(); p != nil {
			res = response{Error: fmt.Sprintf("panic: %v", p)}
		}
	}()
	h, ok := s.handlers[req.Method]
	if !ok {
		return response{Error: fmt.Sprintf("unknown method %q", req.Method)}
	}
	result, err := h(ctx, req.Params, func(part any) {
		raw, err := json.Marshal(part)
		if err == nil {
			s.reply(req.ID, response{Part: raw})
		}
	})
	if err != nil {
		return response{Error: err.Error()}
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return response{Error: fmt.Sprintf("encode the result: %v", err)}
	}
	return response{Result: raw}
}

func (s *server) reply(id string, res response) {
	res.ID = id
	line, err := encode(res)
	if err != nil {
		line, _ = encode(response{ID: id, Error: err.Error()})
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	_, _ = s.port.Write(line) // if the peer has gone, nobody waits for it
}

func (s *server) abandon(params json.RawMessage) {
	var id string
	if json.Unmarshal(params, &id) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel, ok := s.cancel[id]; ok {
		cancel()
	}
}
