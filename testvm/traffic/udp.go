package traffic

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// echoWait is how long a sender waits for each echo.
const echoWait = time.Second

// UDPResult counts datagrams and their echoes.
type UDPResult struct {
	Sent     int `json:"sent"`
	Received int `json:"received"`
}

// ServeUDP echoes the datagrams that arrive at "ip:port" (port 0: any).
func ServeUDP(addr string) (*Server, error) {
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	s := &Server{Addr: conn.LocalAddr().String(), stop: func() { _ = conn.Close() }}
	s.wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil { // closed: an unconnected socket receives no ICMP errors
				return
			}
			_, _ = conn.WriteTo(buf[:n], from)
		}
	})
	return s, nil
}

// SendUDP sends count datagrams of size bytes each (at least 16) to a ServeUDP at "ip:port", each
// after the echo of the previous one, for which it waits one second. It returns an error if there
// is no echo at all; single lost echoes are not an error.
func SendUDP(ctx context.Context, to string, count, size int) (UDPResult, error) {
	var res UDPResult
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", to)
	if err != nil {
		return res, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	out, in := make([]byte, max(16, size)), make([]byte, 1<<16)
	var last error
	for res.Sent < max(1, count) && ctx.Err() == nil {
		_, _ = rand.Read(out)
		res.Sent++
		if last = echoOnce(ctx, conn, out, in); last == nil {
			res.Received++
		}
	}
	if res.Received == 0 {
		return res, fmt.Errorf("udp %s: no echo of %d datagrams: %w",
			to, res.Sent, errors.Join(context.Cause(ctx), last))
	}
	return res, nil
}

func echoOnce(ctx context.Context, conn net.Conn, out, in []byte) error {
	if err := conn.SetDeadline(time.Now().Add(echoWait)); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil { // which ended before the deadline was set again
		return err
	}
	if _, err := conn.Write(out); err != nil {
		return err
	}
	for { // past the late echoes of earlier datagrams
		n, err := conn.Read(in)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("timeout after %s", echoWait)
		}
		if err != nil || bytes.Equal(in[:n], out) {
			return err
		}
	}
}
