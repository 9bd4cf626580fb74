package traffic

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// TCPResult is what the receiver of a stream reports.
type TCPResult struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	// Elapsed is the sender's time, from the start of the connection to the receiver's reply.
	Elapsed time.Duration `json:"elapsed,omitempty"`
}

// Server is a running receiver. Close it.
type Server struct {
	// Addr is the "ip:port" that it listens at.
	Addr string

	stop func()
	wg   sync.WaitGroup
}

// Close ends the server and its connections, and waits for them.
func (s *Server) Close() {
	s.stop()
	s.wg.Wait()
}

// ServeTCP listens at "ip:port" (port 0: any), reads each connection to its end and answers with
// the number of bytes received and their digest.
func ServeTCP(addr string) (*Server, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{Addr: l.Addr().String(), stop: func() { cancel(); _ = l.Close() }}
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { digest(ctx, conn) })
		}
	})
	return s, nil
}

// digest answers one connection. The sender sees its errors.
func digest(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	h := sha256.New()
	n, err := io.Copy(h, conn)
	if err != nil {
		return
	}
	_ = json.NewEncoder(conn).Encode(TCPResult{Bytes: n, SHA256: hex.EncodeToString(h.Sum(nil))})
}

// SendTCP sends n pseudo-random bytes to a ServeTCP at "ip:port" and checks that it received
// exactly these bytes.
func SendTCP(ctx context.Context, to string, n int64) (TCPResult, error) {
	start := time.Now()
	var res TCPResult
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return res, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()

	h := sha256.New()
	source := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	_, err = io.CopyN(io.MultiWriter(conn, h), source, n)
	if err == nil {
		err = conn.(*net.TCPConn).CloseWrite()
	}
	if err == nil {
		err = json.NewDecoder(conn).Decode(&res)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return res, fmt.Errorf("send %d bytes to %s: %w", n, to, err)
	}
	res.Elapsed = time.Since(start)
	if sent := hex.EncodeToString(h.Sum(nil)); res.Bytes != n || res.SHA256 != sent {
		return res, fmt.Errorf("send %d bytes to %s: %d arrived, with digest %s instead of %s",
			n, to, res.Bytes, res.SHA256, sent)
	}
	return res, nil
}
