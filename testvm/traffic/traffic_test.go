package traffic_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// do runs f in ns with a ctx of 10 s, and fails the test on its error.
func do(t *testing.T, ns *netns.NS, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := ns.Do(func() error { return f(ctx) }); err != nil {
		t.Error(err)
	}
}

func TestLivePing(t *testing.T) {
	ns := nstest.New(t)
	for _, p := range []traffic.Ping{
		{Addr: "127.0.0.1", Count: 3},
		{Addr: "::1", Count: 3},
		{Addr: "127.0.0.1", Count: 3, Size: 60001},
		{Addr: "::1", Count: 3, Size: 1},
	} {
		do(t, ns, func(ctx context.Context) error {
			res, err := traffic.SendPing(ctx, p)
			if res.Sent != 3 || res.Received != 3 || res.Min <= 0 || res.Min > res.Avg || res.Avg > res.Max {
				t.Errorf("%+v: %+v", p, res)
			}
			return err
		})
	}
	do(t, ns, func(ctx context.Context) error {
		res, err := traffic.SendPing(ctx, traffic.Ping{Addr: "::1", Count: 3, UntilFirst: true})
		if res.Sent != 1 {
			t.Errorf("until the first: %+v", res)
		}
		return err
	})
}

func TestLivePingDontFragment(t *testing.T) {
	ns := nstest.New(t)
	nl := nstest.Handle(t, ns)
	lo, err := nl.LinkByName("lo")
	if err == nil {
		err = nl.LinkSetMTU(lo, 1500)
	}
	if err != nil {
		t.Fatal(err)
	}
	for addr, fits := range map[string]int{"127.0.0.1": 1472, "::1": 1452} {
		for size, ok := range map[int]bool{fits: true, fits + 1: false} {
			do(t, ns, func(ctx context.Context) error {
				_, err := traffic.SendPing(ctx, traffic.Ping{Addr: addr, Size: size, DontFragment: true})
				if (err == nil) != ok || (err != nil && !errors.Is(err, unix.EMSGSIZE)) {
					t.Errorf("%s, %d bytes: %v", addr, size, err)
				}
				return nil
			})
		}
	}
}

func TestLivePingWithoutReply(t *testing.T) {
	ns := nstest.New(t)
	for addr, want := range map[string]string{"10.9.9.9": "unreachable", "nonsense": "unable to parse"} {
		do(t, ns, func(ctx context.Context) error {
			if _, err := traffic.SendPing(ctx, traffic.Ping{Addr: addr, Count: 2}); err == nil ||
				!strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", addr, err, want)
			}
			return nil
		})
	}
	do(t, ns, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := traffic.SendPing(ctx, traffic.Ping{Addr: "10.9.9.9", Count: 1000}); err == nil ||
			time.Since(start) > 5*time.Second {
			t.Errorf("after the end of ctx: %v, %s", err, time.Since(start))
		}
		return nil
	})
}

func TestLiveTCP(t *testing.T) {
	ns := nstest.New(t)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		do(t, ns, func(ctx context.Context) error {
			s, err := traffic.ServeTCP(addr)
			if err != nil {
				return err
			}
			defer s.Close()
			for _, n := range []int64{0, 1, 5 << 20} {
				res, err := traffic.SendTCP(ctx, s.Addr, n)
				if err != nil {
					return err
				}
				if res.Bytes != n || len(res.SHA256) != 64 || res.Elapsed <= 0 {
					t.Errorf("%d bytes: %+v", n, res)
				}
			}
			return nil
		})
	}
}

// TestLiveTCPNoticesDamage sends to a server that loses or changes a byte.
func TestLiveTCPNoticesDamage(t *testing.T) {
	ns := nstest.New(t)
	do(t, ns, func(ctx context.Context) error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		for name, reply := range map[string]traffic.TCPResult{
			"lost":    {Bytes: 99, SHA256: "x"},
			"changed": {Bytes: 100, SHA256: "x"},
		} {
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = io.Copy(io.Discard, conn)
				_ = json.NewEncoder(conn).Encode(reply)
			}()
			if _, err := traffic.SendTCP(ctx, l.Addr().String(), 100); err == nil ||
				!strings.Contains(err.Error(), "instead of") {
				t.Errorf("%s: %v", name, err)
			}
		}
		return nil
	})
}

func TestLiveTCPCloseEndsConnections(t *testing.T) {
	ns := nstest.New(t)
	do(t, ns, func(ctx context.Context) error {
		s, err := traffic.ServeTCP("127.0.0.1:0")
		if err != nil {
			return err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		s.Close() // returns even if the connection is open
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("read %d, %v", n, err)
		}
		if _, err := traffic.SendTCP(ctx, s.Addr, 1); err == nil {
			t.Error("the closed server answered")
		}
		return nil
	})
}

func TestLiveUDP(t *testing.T) {
	ns := nstest.New(t)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		do(t, ns, func(ctx context.Context) error {
			s, err := traffic.ServeUDP(addr)
			if err != nil {
				return err
			}
			res, err := traffic.SendUDP(ctx, s.Addr, 50, 1400)
			if want := (traffic.UDPResult{Sent: 50, Received: 50}); res != want || err != nil {
				t.Errorf("%+v, %v, want %+v", res, err, want)
			}
			s.Close()
			if _, err := traffic.SendUDP(ctx, s.Addr, 2, 10); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("nobody there: %v", err)
			}
			return nil
		})
	}
}
